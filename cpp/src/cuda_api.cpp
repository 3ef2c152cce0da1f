#include "cuda_api.hpp"

#include <cstring>

#include "cuda_owned.hpp"
#include "shared_library.hpp"

namespace destseg_core {
namespace {

const LibraryNames &cuda_names() {
  static const LibraryNames the{
      "CUDA runtime",
      "DESTSEG_CUDART_LIBRARY",
#ifdef _WIN32
      {"cudart64_13.dll", "cudart64_12.dll"},
      "cudart64_",
#else
      {"libcudart.so.13", "libcudart.so.12", "libcudart.so"},
      "libcudart.so",
#endif
      "Install CUDA's runtime and put its library beside this one, or name it in "
      "DESTSEG_CUDART_LIBRARY."};
  return the;
}

std::string why_not_cuda(LibraryHandle library) {
#define DESTSEG_NAME(name) #name,
  return missing_function(library, {DESTSEG_CUDA_CALLS(DESTSEG_NAME)});
#undef DESTSEG_NAME
}

CudaApi load_cuda() {
  LibraryHandle library = load_library(cuda_names(), why_not_cuda);
  CudaApi api{};
#define DESTSEG_FILL(name) api.name = reinterpret_cast<decltype(&::name)>(find_function(library, #name));
  DESTSEG_CUDA_CALLS(DESTSEG_FILL)
#undef DESTSEG_FILL
  using Properties = cudaError_t(void *, int);
  api.get_properties = function_of<Properties>(library, "cudaGetDeviceProperties_v2");  // CUDA 12
  if (api.get_properties == nullptr)
    api.get_properties = function_of<Properties>(library, "cudaGetDeviceProperties");
  return api;
}

}  // namespace

const CudaApi &cuda() {
  static const CudaApi *const loaded = new CudaApi(load_cuda());  // tried again after a failure
  return *loaded;
}

std::string gpu_name(int device) {
  // Longer than the struct of any release; its first member is char name[256].
  alignas(std::max_align_t) char properties[16384] = {};
  check_cuda(cuda().get_properties(properties, device),
             "device 'cuda:" + std::to_string(device) + "'");
  properties[255] = '\0';
  return properties;
}

}  // namespace destseg_core
