#include "onnxruntime_api.hpp"

#include <cstdlib>

#include "error.hpp"
#include "shared_library.hpp"

namespace destseg_core::onnxruntime {
namespace {

// What OrtGetApiBase() of every release returns.
struct ApiBase {
  const void *const *(*GetApi)(std::uint32_t version);
  const char *(*GetVersionString)();
};

// The oldest that has all that is called here and that the tests run: ONNX Runtime 1.20.
constexpr std::uint32_t kOldestApi = 20;

const LibraryNames &names() {
  static const LibraryNames the{
      "onnxruntime",
      "DESTSEG_ONNXRUNTIME_LIBRARY",
#if defined(_WIN32)
      {"onnxruntime.dll"},
      "onnxruntime.dll",
#elif defined(__APPLE__)
      {"libonnxruntime.dylib", "libonnxruntime.1.dylib"},
      "libonnxruntime.",
#else
      {"libonnxruntime.so.1", "libonnxruntime.so"},
      "libonnxruntime.so",
#endif
      "Install ONNX Runtime 1.20 or newer (its release package, its NuGet package, or the folder "
      "onnxruntime/capi of its pip wheel) and put its library beside this one, or name it in "
      "DESTSEG_ONNXRUNTIME_LIBRARY."};
  return the;
}

// ONNX Runtime's own environment, made first of all, looks up a host of its maker and keeps an
// identity of the PC in the user's cache, unless this variable is there.
void switch_off_reports() {
#ifdef _WIN32
  const bool set = _putenv_s("ORT_DISABLE_TELEMETRY", "1") == 0;
#else
  const bool set = setenv("ORT_DISABLE_TELEMETRY", "1", 1) == 0;
#endif
  if (!set)
    throw backend_error("onnxruntime: ORT_DISABLE_TELEMETRY cannot be set, so it would look up a "
                        "host of its maker. Set that variable to 1.");
}

const ApiBase *base_of(LibraryHandle library) {
  auto *const get = function_of<const ApiBase *()>(library, "OrtGetApiBase");
  return get != nullptr ? get() : nullptr;
}

// An old library prints to stderr when it is asked for an API that it does not have.
bool is_old(const std::string &version) {
  char *end = nullptr;
  const long major = std::strtol(version.c_str(), &end, 10);
  const long minor = *end == '.' ? std::strtol(end + 1, nullptr, 10) : 0;
  return major < 1 || (major == 1 && minor < static_cast<long>(kOldestApi));
}

std::string why_not(LibraryHandle library) {
  const ApiBase *base = base_of(library);
  if (base == nullptr) return "it has no OrtGetApiBase";
  const std::string version = base->GetVersionString();
  if (is_old(version)) return "version " + version + ", expected 1.20 or newer";
  return base->GetApi(kOldestApi) == nullptr ? "version " + version + " has no API 20" : "";
}

OrtApi load() {
  switch_off_reports();
  const ApiBase *base = base_of(load_library(names(), why_not));
  const void *const *table = base->GetApi(kOldestApi);
  OrtApi api{};
#define DESTSEG_FILL(name, place, result, arguments) \
  api.name = reinterpret_cast<result(*) arguments>(const_cast<void *>(table[place]));
  DESTSEG_ORT_CALLS(DESTSEG_FILL)
#undef DESTSEG_FILL
  api.version = base->GetVersionString();
  return api;
}

}  // namespace

const OrtApi &ort() {
  static const OrtApi *const loaded = new OrtApi(load());  // tried again after a failure
  return *loaded;
}

}  // namespace destseg_core::onnxruntime
