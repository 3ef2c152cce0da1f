// What CUDA gives, with who frees it. Calls run on the device that a DeviceScope made current.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <string>
#include <utility>

#include "error.hpp"

namespace destseg_core {

inline void check_cuda(cudaError_t code, const std::string &what) {
  if (code == cudaSuccess) return;
  cudaGetLastError();  // so that it is not seen again by the next call
  throw backend_error(what + ": CUDA failed (" + cudaGetErrorString(code) +
                      "). Check the driver and the GPU's free memory.");
}

// Makes a device current in this thread, and the host's own again when it goes.
class DeviceScope {
 public:
  explicit DeviceScope(int index) {
    check_cuda(cudaGetDevice(&before_), "device");
    if (before_ != index)
      check_cuda(cudaSetDevice(index), "device 'cuda:" + std::to_string(index) + "'");
    changed_ = before_ != index;
  }
  ~DeviceScope() {
    if (changed_) cudaSetDevice(before_);
  }
  DeviceScope(const DeviceScope &) = delete;
  DeviceScope &operator=(const DeviceScope &) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

// A handle and the function that frees it.
template <typename T, cudaError_t (*release)(T)>
class CudaOwned {
 public:
  CudaOwned() = default;
  CudaOwned(CudaOwned &&other) noexcept : value_(std::exchange(other.value_, nullptr)) {}
  ~CudaOwned() {
    if (value_ != nullptr) release(value_);
  }
  CudaOwned(const CudaOwned &) = delete;
  CudaOwned &operator=(const CudaOwned &) = delete;
  CudaOwned &operator=(CudaOwned &&) = delete;
  T get() const { return value_; }
  T *receive() { return &value_; }

 private:
  T value_ = nullptr;
};

using CudaStream = CudaOwned<cudaStream_t, cudaStreamDestroy>;
using CudaGraph = CudaOwned<cudaGraph_t, cudaGraphDestroy>;
using CudaGraphExec = CudaOwned<cudaGraphExec_t, cudaGraphExecDestroy>;

// Memory on the GPU, and page-locked memory of the host of the same size.
class CudaPair {
 public:
  explicit CudaPair(std::size_t bytes) {
    check_cuda(cudaMalloc(device_.receive(), bytes), "memory");
    check_cuda(cudaHostAlloc(host_.receive(), bytes, cudaHostAllocDefault), "pinned memory");
  }
  void *device() const { return device_.get(); }
  void *host() const { return host_.get(); }

  cudaError_t copy_in(std::size_t bytes, cudaStream_t stream) const {
    return cudaMemcpyAsync(device(), host(), bytes, cudaMemcpyHostToDevice, stream);
  }
  cudaError_t copy_out(std::size_t bytes, cudaStream_t stream) const {
    return cudaMemcpyAsync(host(), device(), bytes, cudaMemcpyDeviceToHost, stream);
  }

 private:
  CudaOwned<void *, cudaFree> device_;
  CudaOwned<void *, cudaFreeHost> host_;
};

}  // namespace destseg_core
