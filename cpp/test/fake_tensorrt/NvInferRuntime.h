// NOT TensorRT. Own declarations of the parts of TensorRT 10 and 11 that src/backend_tensorrt.cpp
// calls, with the signatures of NVIDIA's documentation, so that it compiles and its logic runs
// where neither TensorRT nor a GPU is; fake_tensorrt.cpp implements them on the CPU. Layouts
// differ from NVIDIA's: what is compiled with this header runs with this fake and nothing else.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#define NV_TENSORRT_MAJOR 11
#define NV_TENSORRT_MINOR 4
#define NV_TENSORRT_PATCH 0
#define NV_TENSORRT_BUILD 106
#define NV_TENSORRT_VERSION 110400

namespace nvinfer1 {

using AsciiChar = char;
enum class DataType : std::int32_t { kFLOAT = 0, kUINT8 = 5 };
enum class OptProfileSelector : std::int32_t { kMIN = 0, kOPT = 1, kMAX = 2 };
enum class TensorIOMode : std::int32_t { kNONE = 0, kINPUT = 1, kOUTPUT = 2 };

struct Dims {
  static constexpr std::int32_t MAX_DIMS = 8;
  std::int32_t nbDims;
  std::int64_t d[MAX_DIMS];
};

class ILogger {
 public:
  enum class Severity : std::int32_t { kINTERNAL_ERROR, kERROR, kWARNING, kINFO, kVERBOSE };
  virtual void log(Severity severity, const AsciiChar *message) noexcept = 0;
  virtual ~ILogger() = default;
};

class IExecutionContext {
 public:
  virtual ~IExecutionContext() = default;
  virtual bool setTensorAddress(const char *name, void *data) noexcept = 0;
  virtual bool setInputShape(const char *name, const Dims &dims) noexcept = 0;
  virtual bool enqueueV3(cudaStream_t stream) noexcept = 0;
};

class ICudaEngine {
 public:
  virtual ~ICudaEngine() = default;
  virtual IExecutionContext *createExecutionContext() noexcept = 0;
  virtual std::int32_t getNbIOTensors() const noexcept = 0;
  virtual TensorIOMode getTensorIOMode(const char *name) const noexcept = 0;
  virtual DataType getTensorDataType(const char *name) const noexcept = 0;
  virtual Dims getTensorShape(const char *name) const noexcept = 0;
  virtual Dims getProfileShape(const char *name, std::int32_t profile,
                               OptProfileSelector select) const noexcept = 0;
};

class IRuntime {
 public:
  virtual ~IRuntime() = default;
  virtual ICudaEngine *deserializeCudaEngine(const void *blob, std::size_t size) noexcept = 0;
};

}  // namespace nvinfer1
