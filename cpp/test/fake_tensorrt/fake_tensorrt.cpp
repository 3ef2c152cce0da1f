// A TensorRT and a CUDA runtime that run on the CPU, for tests of the TensorRT back end's logic.
//
// An engine is a text: "fake-engine HEIGHT WIDTH MAP_HEIGHT MAP_WIDTH [WORD]". Its map holds, at
// each pixel, the input's pixel at the same place (modulo its size) as R + 256 G + 65536 B over
// 2^24; its score is the first value of the map. With the word "nograph" its work cannot be captured, with
// "fails" it cannot be run, with "slow" it takes 0.3 s.
//
// A stream queues its work and runs it when it is synchronised, as a GPU that is late would; so
// whoever reads results without waiting sees zeros. Capturing queues elsewhere.
#include <NvInferRuntime.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <sstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

using Work = std::vector<std::function<void()>>;
struct CUgraph_st {
  Work work;
};
struct CUgraphExec_st {
  Work work;
};
struct CUstream_st {
  Work queued, captured;
  bool capturing = false;
  bool spoiled = false;
  void add(std::function<void()> step) { (capturing ? captured : queued).push_back(std::move(step)); }
};

namespace {
thread_local int current_device = 0;
thread_local cudaError_t last_code = cudaSuccess;
cudaError_t code(cudaError_t value) {
  if (value != cudaSuccess) last_code = value;
  return value;
}
}  // namespace

cudaError_t cudaGetLastError() { return std::exchange(last_code, cudaSuccess); }
const char *cudaGetErrorString(cudaError_t value) {
  return value == cudaErrorMemoryAllocation ? "out of memory" : "unknown error";
}
cudaError_t cudaGetDeviceCount(int *count) { return *count = 2, cudaSuccess; }
cudaError_t cudaGetDevice(int *device) { return *device = current_device, cudaSuccess; }
cudaError_t cudaSetDevice(int device) { return current_device = device, cudaSuccess; }
cudaError_t cudaGetDeviceProperties(void *properties, int) {
  return std::strcpy(static_cast<char *>(properties), "Fake GPU"), cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int) {
  return *value = attribute == cudaDevAttrComputeCapabilityMajor ? 9 : 0, cudaSuccess;
}
cudaError_t cudaMalloc(void **pointer, std::size_t size) {
  *pointer = std::calloc(size, 1);
  return code(*pointer == nullptr ? cudaErrorMemoryAllocation : cudaSuccess);
}
cudaError_t cudaFree(void *pointer) { return std::free(pointer), cudaSuccess; }
cudaError_t cudaHostAlloc(void **pointer, std::size_t size, unsigned) {
  return cudaMalloc(pointer, size);
}
cudaError_t cudaFreeHost(void *pointer) { return cudaFree(pointer); }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned) {
  return *stream = new CUstream_st, cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) { return delete stream, cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  for (const auto &step : std::exchange(stream->queued, {})) step();
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void *target, const void *source, std::size_t size, cudaMemcpyKind,
                            cudaStream_t stream) {
  stream->add([=] { std::memcpy(target, source, size); });
  return cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  return stream->capturing = true, cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
  stream->capturing = false;
  Work work = std::exchange(stream->captured, {});
  if (std::exchange(stream->spoiled, false)) return code(cudaErrorUnknown);
  *graph = new CUgraph_st{std::move(work)};
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *executable, cudaGraph_t graph,
                                          unsigned long long) {
  return *executable = new CUgraphExec_st{graph->work}, cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  for (const auto &step : executable->work) stream->add(step);
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return delete graph, cudaSuccess; }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) { return delete graph, cudaSuccess; }

namespace nvinfer1 {
namespace {

struct Shape {
  std::int64_t height = 0, width = 0, map_height = 0, map_width = 0;
  std::string word;
};

void score(const Shape &shape, std::int64_t count, const unsigned char *image, float *map,
           float *scores) {
  for (std::int64_t n = 0; n < count; ++n) {
    for (std::int64_t y = 0; y < shape.map_height; ++y)
      for (std::int64_t x = 0; x < shape.map_width; ++x) {
        const unsigned char *pixel =
            image + 3 * ((n * shape.height + y % shape.height) * shape.width + x % shape.width);
        const std::int64_t packed = pixel[0] + 256 * pixel[1] + 65536 * pixel[2];
        map[(n * shape.map_height + y) * shape.map_width + x] =
            static_cast<float>(packed) / 16777216.0f;
      }
    scores[n] = map[n * shape.map_height * shape.map_width];
  }
}

class Context final : public IExecutionContext {
 public:
  Context(const Shape &shape, ILogger &logger) : shape_(shape), logger_(logger) {}
  bool setTensorAddress(const char *name, void *data) noexcept override {
    addresses_[name] = data;
    return true;
  }
  bool setInputShape(const char *, const Dims &dims) noexcept override {
    batch_ = dims.d[0];
    return dims.nbDims == 4 && dims.d[1] == shape_.height && dims.d[2] == shape_.width;
  }
  bool enqueueV3(cudaStream_t stream) noexcept override {
    if (shape_.word == "fails" || (shape_.word == "nograph" && stream->capturing)) {
      stream->spoiled = stream->capturing;
      logger_.log(ILogger::Severity::kERROR, "the fake was told to fail");
      return false;
    }
    const auto image = static_cast<const unsigned char *>(addresses_["image"]);
    const auto map = static_cast<float *>(addresses_["anomaly_map"]);
    const auto scores = static_cast<float *>(addresses_["score"]);
    stream->add([=, shape = shape_, batch = batch_] {
      if (shape.word == "slow") std::this_thread::sleep_for(std::chrono::milliseconds(300));
      score(shape, batch, image, map, scores);
    });
    return true;
  }

 private:
  const Shape shape_;
  ILogger &logger_;
  std::int64_t batch_ = 0;
  std::map<std::string, void *> addresses_;
};

class Engine final : public ICudaEngine {
 public:
  Engine(Shape shape, ILogger &logger) : shape_(std::move(shape)), logger_(logger) {}
  IExecutionContext *createExecutionContext() noexcept override {
    return new Context(shape_, logger_);
  }
  std::int32_t getNbIOTensors() const noexcept override { return 3; }
  TensorIOMode getTensorIOMode(const char *name) const noexcept override {
    const std::string which = name;
    if (which == "image") return TensorIOMode::kINPUT;
    return which == "anomaly_map" || which == "score" ? TensorIOMode::kOUTPUT
                                                      : TensorIOMode::kNONE;
  }
  DataType getTensorDataType(const char *name) const noexcept override {
    return std::string(name) == "image" ? DataType::kUINT8 : DataType::kFLOAT;
  }
  Dims getTensorShape(const char *name) const noexcept override {
    const std::string which = name;
    if (which == "image") return {4, {-1, shape_.height, shape_.width, 3}};
    if (which == "anomaly_map") return {3, {-1, shape_.map_height, shape_.map_width}};
    return {1, {-1}};
  }
  Dims getProfileShape(const char *, std::int32_t, OptProfileSelector select) const noexcept override {
    return {4, {select == OptProfileSelector::kMIN ? 1 : 64, shape_.height, shape_.width, 3}};
  }

 private:
  const Shape shape_;
  ILogger &logger_;
};

class Runtime final : public IRuntime {
 public:
  explicit Runtime(ILogger &logger) : logger_(logger) {}
  ICudaEngine *deserializeCudaEngine(const void *blob, std::size_t size) noexcept override {
    std::istringstream text(std::string(static_cast<const char *>(blob), size));
    std::string magic;
    Shape shape;
    text >> magic >> shape.height >> shape.width >> shape.map_height >> shape.map_width;
    if (text && magic == "fake-engine") return text >> shape.word, new Engine(shape, logger_);
    logger_.log(ILogger::Severity::kERROR, "no fake engine:\n  bad magic");
    return nullptr;
  }

 private:
  ILogger &logger_;
};

}  // namespace

}  // namespace nvinfer1

extern "C" {
void *createInferRuntime_INTERNAL(void *logger, std::int32_t) {
  return static_cast<nvinfer1::IRuntime *>(
      new nvinfer1::Runtime(*static_cast<nvinfer1::ILogger *>(logger)));
}
std::int32_t getInferLibMajorVersion() { return NV_TENSORRT_MAJOR; }
std::int32_t getInferLibMinorVersion() { return NV_TENSORRT_MINOR; }
std::int32_t getInferLibPatchVersion() { return NV_TENSORRT_PATCH; }
std::int32_t getInferLibBuildVersion() { return NV_TENSORRT_BUILD; }
}
