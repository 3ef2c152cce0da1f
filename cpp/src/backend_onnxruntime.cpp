// ONNX Runtime, through its C API, loaded at run time; see onnxruntime_api.hpp.
#include <array>

#include "backend.hpp"
#include "error.hpp"
#include "int8_probe.hpp"
#include "memory.hpp"
#include "onnxruntime_api.hpp"
#include "owned.hpp"

namespace destseg_core::onnxruntime {
namespace {

// A status that is a failure, in one line; `what` is what failed.
std::string message_of(OrtStatus *status, const std::string &what) {
  const std::string message = ort().GetErrorMessage(status);
  ort().ReleaseStatus(status);
  refuse_shortage(what, one_line(message, std::string::npos));  // the cause may stand at the end
  return one_line(message);
}

#define DESTSEG_OWNED(name) Owned<ort, Ort##name *, &OrtApi::Release##name>
using Env = DESTSEG_OWNED(Env);
using Options = DESTSEG_OWNED(SessionOptions);
using Session = DESTSEG_OWNED(Session);
using Value = DESTSEG_OWNED(Value);
using Memory = DESTSEG_OWNED(MemoryInfo);
using TypeInfo = DESTSEG_OWNED(TypeInfo);
#undef DESTSEG_OWNED

class CudaOptions {
 public:
  CudaOptions() {
    if (OrtStatus *status = ort().CreateCUDAProviderOptions(&value_))
      throw backend_error(message_of(status, "CUDA's options"));
  }
  ~CudaOptions() { ort().ReleaseCUDAProviderOptions(value_); }
  CudaOptions(const CudaOptions &) = delete;
  CudaOptions &operator=(const CudaOptions &) = delete;
  OrtCUDAProviderOptionsV2 *get() const { return value_; }

 private:
  OrtCUDAProviderOptionsV2 *value_ = nullptr;
};

class OrtBackend final : public Backend {
 public:
  OrtBackend(const Request &request, const Spec &spec)
      : spec_(spec),
        path_(request.path),
        log_(request.log),
        place_(request.device == "cpu"
                   ? request.device
                   : "cuda:" + std::to_string(device_index(request.device))) {
    check(ort().CreateEnv(kLogErrors, "destseg", env_.receive()));
    check(ort().CreateCpuMemoryInfo(kArenaAllocator, kDefaultMemory, memory_.receive()));
    Options options;
    check(ort().CreateSessionOptions(options.receive()));
    set_threads(options, request);
    set_log(options);
    if (request.device != "cpu") use_cuda(options, request.device);
    if (request.device == "cpu" && spec.precision == "int8" && saturates()) use_exact(options);
    check(ort().CreateSession(env_.get(), path_.c_str(), options.get(), session_.receive()));
    check_tensors();
  }

  std::unique_ptr<Lane> open_lane() override;
  std::string version() const override { return ort().version; }

  const Spec &spec() const { return spec_; }

  // A tensor over memory that the caller keeps.
  template <std::size_t kRank, typename T>
  void wrap(T *data, std::size_t count, const std::array<std::int64_t, kRank> &shape,
            ElementType type, Value &value) const {
    check_run(ort().CreateTensorWithDataAsOrtValue(memory_.get(), data, count * sizeof(T),
                                                   shape.data(), kRank, type, value.receive()));
  }

  void run(const Value &images, const Value &maps, const Value &scores) const {
    const char *inputs[] = {spec_.input_name.c_str()};
    const char *outputs[] = {spec_.map_name.c_str(), spec_.score_name.c_str()};
    const OrtValue *given[] = {images.get()};
    OrtValue *wanted[] = {maps.get(), scores.get()};
    check_run(ort().Run(session_.get(), nullptr, inputs, given, 1, outputs, 2, wanted));
  }

 private:
  void check(OrtStatus *status) const {
    if (status == nullptr) return;
    const std::string message = message_of(status, path_.u8string());
    throw backend_error(path_.u8string() + ": ONNX Runtime cannot open it (" + message +
                        "). Export it again.");
  }

  void check_run(OrtStatus *status) const {
    if (status == nullptr) return;
    const std::string message = message_of(status, spec_.artifact.file);
    throw backend_error(spec_.artifact.file + ": ONNX Runtime failed on device '" + place_ + "' (" +
                        message +
                        "). Load the artifact again; on a GPU, nvidia-smi shows its memory and "
                        "errors.");
  }

  void set_threads(const Options &options, const Request &request) const {
    const std::size_t pinned = request.worker_cores.size();
    const int threads = pinned > 0 ? static_cast<int>(pinned) + 1 : request.threads;
    check(ort().SetIntraOpNumThreads(options.get(), threads));
    if (!request.spinning)
      check(ort().AddSessionConfigEntry(options.get(), "session.intra_op.allow_spinning", "0"));
    std::string places;
    for (const int core : request.worker_cores)  // counted from 1 there
      places += (places.empty() ? "" : ";") + std::to_string(core + 1);
    if (pinned > 0)
      check(ort().AddSessionConfigEntry(options.get(), "session.intra_op_thread_affinities",
                                        places.c_str()));
  }

  void set_log(const Options &options) const {
    const int least = log_.is_wanted() ? kLogWarnings : kLogErrors;
    check(ort().SetSessionLogSeverityLevel(options.get(), least));
    if (!log_.is_wanted()) return;
    const auto forward = [](void *log, int severity, const char *, const char *, const char *,
                            const char *message) {
      const std::int32_t level = severity <= kLogWarnings ? DESTSEG_LOG_WARNING : DESTSEG_LOG_ERROR;
      static_cast<const Log *>(log)->write(level, "ONNX Runtime: " + one_line(message));
    };
    check(ort().SetUserLoggingFunction(options.get(), forward, const_cast<Log *>(&log_)));
  }

  // Whether sums of uint8 by int8 stop at 16 bit on this CPU; see int8_probe.hpp.
  bool saturates() const {
    Options options;
    check(ort().CreateSessionOptions(options.receive()));
    check(ort().SetIntraOpNumThreads(options.get(), 1));
    check(ort().SetSessionLogSeverityLevel(options.get(), kLogErrors));
    Session session;
    check(ort().CreateSessionFromArray(env_.get(), kProbeGraph, sizeof kProbeGraph, options.get(),
                                       session.receive()));
    constexpr std::int64_t kRows = 4, kColumns = 16;
    std::vector<std::uint8_t> left(kRows * kProbeTerms, kProbeLeft);
    std::vector<std::int8_t> right(kProbeTerms * kColumns, kProbeRight);
    std::vector<std::int32_t> found(kRows * kColumns);
    Value a, b, y;
    wrap<2>(left.data(), left.size(), {kRows, kProbeTerms}, kUint8, a);
    wrap<2>(right.data(), right.size(), {kProbeTerms, kColumns}, kInt8,
            b);
    wrap<2>(found.data(), found.size(), {kRows, kColumns}, kInt32, y);
    const char *const inputs[] = {"a", "b"}, *const outputs[] = {"y"};
    const OrtValue *given[] = {a.get(), b.get()};
    OrtValue *wanted[] = {y.get()};
    check_run(ort().Run(session.get(), nullptr, inputs, given, 2, outputs, 1, wanted));
    return is_saturated(found.data(), found.size());
  }

  // Weights become uint8, which has exact kernels everywhere; slower, so only where it is needed.
  void use_exact(const Options &options) const {
    check(ort().AddSessionConfigEntry(options.get(), "session.x64quantprecision", "1"));
  }

  void use_cuda(const Options &options, const std::string &device) const {
    char **names = nullptr;
    int count = 0;
    check(ort().GetAvailableProviders(&names, &count));
    bool found = false;
    std::string listed;
    for (int i = 0; i < count; ++i) {
      found = found || std::string(names[i]) == "CUDAExecutionProvider";
      listed += (i == 0 ? "" : ", ") + std::string(names[i]);
    }
    check(ort().ReleaseAvailableProviders(names, count));
    if (!found)
      throw backend_error("device '" + place_ + "': this ONNX Runtime (" + version() +
                          ") has no CUDAExecutionProvider, only " + listed +
                          ". Install onnxruntime-gpu, or use 'cpu'.");
    const CudaOptions cuda;
    const std::string index = std::to_string(device_index(device));
    // TF32 keeps 10 bits of a product; the scores, and a resize inside the graph, need all.
    const char *keys[] = {"device_id", "use_tf32"};
    const char *values[] = {index.c_str(), "0"};
    check(ort().UpdateCUDAProviderOptions(cuda.get(), keys, values, 2));
    check(ort().SessionOptionsAppendExecutionProvider_CUDA_V2(options.get(), cuda.get()));
  }

  // Buffers are sized by the spec, so the graph must agree with it.
  void check_tensors() const {
    const int height = spec_.input.height, width = spec_.input.width;
    std::size_t inputs = 0;
    check(ort().SessionGetInputCount(session_.get(), &inputs));
    bool fits = inputs == 1 && has(true, spec_.input_name, kUint8,
                                   {height, width, 3});
    const auto type = kFloat;
    fits = fits && has(false, spec_.map_name, type, {spec_.map.height, spec_.map.width});
    if (!fits || !has(false, spec_.score_name, type, {}))
      throw backend_error(path_.u8string() + ": its tensors are not those of its spec. Export it "
                          "again.");
  }

  // Whether there is a tensor of that name and type whose shape is (batch, sizes...).
  bool has(bool input, const std::string &name, ElementType type,
           const std::vector<std::int64_t> &sizes) const {
    OrtAllocator *allocator = nullptr;
    check(ort().GetAllocatorWithDefaultOptions(&allocator));
    std::size_t count = 0;
    check((input ? ort().SessionGetInputCount : ort().SessionGetOutputCount)(session_.get(),
                                                                             &count));
    for (std::size_t i = 0; i < count; ++i) {
      char *found = nullptr;
      check((input ? ort().SessionGetInputName : ort().SessionGetOutputName)(session_.get(), i,
                                                                             allocator, &found));
      const bool same = name == found;
      check(ort().AllocatorFree(allocator, found));
      if (same) return matches(input, i, type, sizes);
    }
    return false;
  }

  bool matches(bool input, std::size_t index, ElementType type,
               const std::vector<std::int64_t> &sizes) const {
    TypeInfo info;
    check((input ? ort().SessionGetInputTypeInfo : ort().SessionGetOutputTypeInfo)(
        session_.get(), index, info.receive()));
    const OrtTensorTypeAndShapeInfo *tensor = nullptr;
    check(ort().CastTypeInfoToTensorInfo(info.get(), &tensor));
    if (tensor == nullptr) return false;
    int found = 0;
    std::size_t rank = 0;
    check(ort().GetTensorElementType(tensor, &found));
    check(ort().GetDimensionsCount(tensor, &rank));
    if (found != type || rank != sizes.size() + 1) return false;
    std::vector<std::int64_t> shape(rank);
    check(ort().GetDimensions(tensor, shape.data(), rank));
    for (std::size_t i = 0; i < sizes.size(); ++i)
      if (shape[i + 1] != sizes[i] && shape[i + 1] != -1) return false;
    return true;
  }

  const Spec &spec_;
  const std::filesystem::path path_;
  const Log log_;
  const std::string place_;
  Env env_;
  Memory memory_;
  Session session_;
};

class OrtLane final : public Lane {
 public:
  explicit OrtLane(const OrtBackend &backend) : backend_(backend) {}

  std::uint8_t *images(int count) override {
    const auto frames = static_cast<std::size_t>(count);
    images_.resize(frames * backend_.spec().input.pixels() * 3);
    maps_.resize(frames * backend_.spec().map.pixels());
    scores_.resize(frames);
    return images_.data();
  }

  void run(int count) override {
    const Size input = backend_.spec().input, map = backend_.spec().map;
    const auto type = kFloat;
    Value images, maps, scores;
    backend_.wrap<4>(images_.data(), images_.size(), {count, input.height, input.width, 3},
                     kUint8, images);
    backend_.wrap<3>(maps_.data(), maps_.size(), {count, map.height, map.width}, type, maps);
    backend_.wrap<1>(scores_.data(), scores_.size(), {count}, type, scores);
    backend_.run(images, maps, scores);
  }

  const float *maps() const override { return maps_.data(); }
  const float *scores() const override { return scores_.data(); }

 private:
  const OrtBackend &backend_;
  std::vector<std::uint8_t> images_;
  std::vector<float> maps_, scores_;
};

std::unique_ptr<Lane> OrtBackend::open_lane() { return std::make_unique<OrtLane>(*this); }

}  // namespace
}  // namespace destseg_core::onnxruntime

namespace destseg_core {

void load_onnxruntime() { onnxruntime::ort(); }

std::unique_ptr<Backend> open_onnxruntime(const Request &request, const Spec &spec) {
  return std::make_unique<onnxruntime::OrtBackend>(request, spec);
}

}  // namespace destseg_core
