// ONNX Runtime's C API, as much of it as is called here: declarations of our own, so that the build
// needs no headers of it. Its table of functions only grows at its end, so a place holds for every
// release from 1.20 on. tests/cpp/test_loading.py compares the places with the vendor's header.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>

namespace destseg_core::onnxruntime {

struct OrtStatus;
struct OrtEnv;
struct OrtSession;
struct OrtSessionOptions;
struct OrtRunOptions;
struct OrtValue;
struct OrtMemoryInfo;
struct OrtAllocator;
struct OrtTypeInfo;
struct OrtTensorTypeAndShapeInfo;
struct OrtCUDAProviderOptionsV2;

using Char = std::filesystem::path::value_type;  // wchar_t on Windows

enum ElementType : int { kFloat = 1, kUint8 = 2, kInt8 = 3, kInt32 = 6 };
constexpr int kLogWarnings = 2, kLogErrors = 3;

using Logger = void (*)(void *, int severity, const char *category, const char *session,
                        const char *place, const char *message);
constexpr int kArenaAllocator = 1, kDefaultMemory = 0;

// X(name, place in the table, result, arguments)
#define DESTSEG_ORT_CALLS(X)                                                                      \
  X(GetErrorMessage, 2, const char *, (const OrtStatus *))                                        \
  X(CreateEnv, 3, OrtStatus *, (int severity, const char *name, OrtEnv **))                       \
  X(CreateSession, 7, OrtStatus *,                                                                \
    (const OrtEnv *, const Char *path, const OrtSessionOptions *, OrtSession **))                 \
  X(CreateSessionFromArray, 8, OrtStatus *,                                                       \
    (const OrtEnv *, const void *, std::size_t, const OrtSessionOptions *, OrtSession **))        \
  X(Run, 9, OrtStatus *,                                                                          \
    (OrtSession *, const OrtRunOptions *, const char *const *inputs, const OrtValue *const *,     \
     std::size_t, const char *const *outputs, std::size_t, OrtValue **))                          \
  X(CreateSessionOptions, 10, OrtStatus *, (OrtSessionOptions **))                                \
  X(SetSessionLogSeverityLevel, 22, OrtStatus *, (OrtSessionOptions *, int))                      \
  X(SetIntraOpNumThreads, 24, OrtStatus *, (OrtSessionOptions *, int))                            \
  X(SessionGetInputCount, 30, OrtStatus *, (const OrtSession *, std::size_t *))                   \
  X(SessionGetOutputCount, 31, OrtStatus *, (const OrtSession *, std::size_t *))                  \
  X(SessionGetInputTypeInfo, 33, OrtStatus *, (const OrtSession *, std::size_t, OrtTypeInfo **))  \
  X(SessionGetOutputTypeInfo, 34, OrtStatus *, (const OrtSession *, std::size_t, OrtTypeInfo **)) \
  X(SessionGetInputName, 36, OrtStatus *,                                                         \
    (const OrtSession *, std::size_t, OrtAllocator *, char **))                                   \
  X(SessionGetOutputName, 37, OrtStatus *,                                                        \
    (const OrtSession *, std::size_t, OrtAllocator *, char **))                                   \
  X(CreateTensorWithDataAsOrtValue, 49, OrtStatus *,                                              \
    (const OrtMemoryInfo *, void *, std::size_t, const std::int64_t *, std::size_t, int type,     \
     OrtValue **))                                                                                \
  X(CastTypeInfoToTensorInfo, 55, OrtStatus *,                                                    \
    (const OrtTypeInfo *, const OrtTensorTypeAndShapeInfo **))                                    \
  X(GetTensorElementType, 60, OrtStatus *, (const OrtTensorTypeAndShapeInfo *, int *))            \
  X(GetDimensionsCount, 61, OrtStatus *, (const OrtTensorTypeAndShapeInfo *, std::size_t *))      \
  X(GetDimensions, 62, OrtStatus *,                                                               \
    (const OrtTensorTypeAndShapeInfo *, std::int64_t *, std::size_t))                             \
  X(CreateCpuMemoryInfo, 69, OrtStatus *, (int allocator, int memory, OrtMemoryInfo **))          \
  X(AllocatorFree, 76, OrtStatus *, (OrtAllocator *, void *))                                     \
  X(GetAllocatorWithDefaultOptions, 78, OrtStatus *, (OrtAllocator **))                           \
  X(ReleaseEnv, 92, void, (OrtEnv *))                                                             \
  X(ReleaseStatus, 93, void, (OrtStatus *))                                                       \
  X(ReleaseMemoryInfo, 94, void, (OrtMemoryInfo *))                                               \
  X(ReleaseSession, 95, void, (OrtSession *))                                                     \
  X(ReleaseValue, 96, void, (OrtValue *))                                                         \
  X(ReleaseTypeInfo, 98, void, (OrtTypeInfo *))                                                   \
  X(ReleaseSessionOptions, 100, void, (OrtSessionOptions *))                                      \
  X(GetAvailableProviders, 125, OrtStatus *, (char ***, int *))                                   \
  X(ReleaseAvailableProviders, 126, OrtStatus *, (char **, int))                                  \
  X(AddSessionConfigEntry, 130, OrtStatus *,                                                      \
    (OrtSessionOptions *, const char *key, const char *value))                                    \
  X(SessionOptionsAppendExecutionProvider_CUDA_V2, 204, OrtStatus *,                              \
    (OrtSessionOptions *, const OrtCUDAProviderOptionsV2 *))                                      \
  X(CreateCUDAProviderOptions, 205, OrtStatus *, (OrtCUDAProviderOptionsV2 **))                   \
  X(UpdateCUDAProviderOptions, 206, OrtStatus *,                                                  \
    (OrtCUDAProviderOptionsV2 *, const char *const *keys, const char *const *values,              \
     std::size_t))                                                                                \
  X(ReleaseCUDAProviderOptions, 208, void, (OrtCUDAProviderOptionsV2 *))                          \
  X(SetUserLoggingFunction, 266, OrtStatus *, (OrtSessionOptions *, Logger, void *))

struct OrtApi {
#define DESTSEG_MEMBER(name, place, result, arguments) result(*name) arguments;
  DESTSEG_ORT_CALLS(DESTSEG_MEMBER)
#undef DESTSEG_MEMBER
  std::string version;  // of the library, such as "1.32.0"
};

// Loads ONNX Runtime at the first call. Throws Error (backend) where there is none.
const OrtApi &ort();

}  // namespace destseg_core::onnxruntime
