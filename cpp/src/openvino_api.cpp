#include "openvino_api.hpp"

#include "shared_library.hpp"

namespace destseg_core::openvino {
namespace {

const LibraryNames &names() {
  static const LibraryNames the{
      "openvino",
      "DESTSEG_OPENVINO_LIBRARY",
#if defined(_WIN32)
      {"openvino_c.dll"},
      "openvino_c.dll",
#elif defined(__APPLE__)
      {"libopenvino_c.dylib"},
      "libopenvino_c.",
#else
      {"libopenvino_c.so"},
      "libopenvino_c.so",
#endif
      "Install OpenVINO (its archive, or the pip wheel) and name the folder with its libraries in "
      "DESTSEG_OPENVINO_LIBRARY, such as .../site-packages/openvino/libs."};
  return the;
}

std::string why_not(LibraryHandle library) {
#define DESTSEG_NAME(name, result, arguments) "ov_" #name,
  return missing_function(library, {DESTSEG_OPENVINO_CALLS(DESTSEG_NAME)});
#undef DESTSEG_NAME
}

Api load() {
  LibraryHandle library = load_library(names(), why_not);
  Api api{};
#define DESTSEG_FILL(name, result, arguments) \
  api.name = function_of<result arguments>(library, "ov_" #name);
  DESTSEG_OPENVINO_CALLS(DESTSEG_FILL)
#undef DESTSEG_FILL
  return api;
}

}  // namespace

const Api &openvino_api() {
  static const Api *const loaded = new Api(load());  // tried again after a failure
  return *loaded;
}

}  // namespace destseg_core::openvino
