// OpenVINO on the CPU, through its C API, loaded at run time; in float32 unless asked otherwise: its
// default is bfloat16 on processors that have it.
#include <algorithm>
#include <array>
#include <initializer_list>
#include <memory>
#include <sstream>
#include <utility>

#include "backend.hpp"
#include "error.hpp"
#include "int8_probe.hpp"
#include "memory.hpp"
#include "openvino_api.hpp"
#include "owned.hpp"
#include "text.hpp"

namespace destseg_core::openvino {
namespace {

const Api &ov() { return openvino_api(); }

using OwnedCore = Owned<openvino_api, Core *, &Api::core_free>;
using OwnedModel = Owned<openvino_api, Model *, &Api::model_free>;
using OwnedCompiled = Owned<openvino_api, CompiledModel *, &Api::compiled_model_free>;
using OwnedRequest = Owned<openvino_api, InferRequest *, &Api::infer_request_free>;
using OwnedTensor = Owned<openvino_api, Tensor *, &Api::tensor_free>;
using OwnedPort = Owned<openvino_api, ConstPort *, &Api::output_const_port_free>;

// A status of OpenVINO's that is a failure; what to say of it is the caller's to know.
struct Failure {
  std::string reason;
};

void need(int status) {
  if (status == 0) return;
  const char *message = ov().get_last_err_msg();
  throw Failure{message != nullptr && *message != '\0' ? one_line(message)
                                                       : "status " + std::to_string(status)};
}

// A tensor's shape: (count, sizes...).
class Sizes {
 public:
  Sizes(int count, std::initializer_list<int> sizes) : sizes_{count} {
    sizes_.insert(sizes_.end(), sizes.begin(), sizes.end());
  }
  Shape shape() { return {static_cast<std::int64_t>(sizes_.size()), sizes_.data()}; }
  bool is_of(const Tensor *tensor) const {
    Shape found{};
    need(ov().tensor_get_shape(tensor, &found));
    const bool same = std::equal(sizes_.begin(), sizes_.end(), found.sizes, found.sizes + found.rank);
    ov().shape_free(&found);
    return same;
  }
  bool fits(const PartialShape &found) const {
    const auto rank = static_cast<std::int64_t>(sizes_.size());
    if (found.rank.least != rank || found.rank.most != rank) return false;
    for (std::size_t i = 1; i < sizes_.size(); ++i) {
      const Dimension &size = found.sizes[i];
      if (size.least > sizes_[i] || (size.most != -1 && size.most < sizes_[i])) return false;
    }
    return true;
  }

 private:
  std::vector<std::int64_t> sizes_;
};

template <typename T>
T *data_of(const OwnedTensor &tensor) {
  void *data = nullptr;
  need(ov().tensor_data(tensor.get(), &data));
  return static_cast<T *>(data);
}

// Keys and values of OpenVINO's properties, at most four pairs.
using Properties = std::vector<std::pair<std::string, std::string>>;

void compile(const OwnedCore &core, const OwnedModel &model, const Properties &properties,
             OwnedCompiled &compiled) {
  std::array<const char *, 8> text{};
  for (std::size_t i = 0; i < properties.size(); ++i) {
    text[2 * i] = properties[i].first.c_str();
    text[2 * i + 1] = properties[i].second.c_str();
  }
  need(ov().core_compile_model(core.get(), model.get(), "CPU", 2 * properties.size(),
                               compiled.receive(), text[0], text[1], text[2], text[3], text[4],
                               text[5], text[6], text[7]));
}

// A small model of known types: its input is uint8, its output float32, and its convolution is one of
// uint8 by int8, as a quantised graph has them.
class Probe {
 public:
  explicit Probe(const OwnedCore &core) : core_(core) {
    const std::string file = probe_convolution();
    need(ov().core_read_model_from_memory_buffer(core.get(), file.data(), file.size(), nullptr,
                                                 model_.receive()));
    OwnedPort input, output;
    need(ov().model_const_input_by_name(model_.get(), "x", input.receive()));
    need(ov().model_const_output_by_name(model_.get(), "y", output.receive()));
    need(ov().port_get_element_type(input.get(), &uint8));
    need(ov().port_get_element_type(output.get(), &float32));
  }

  // Whether sums of uint8 by int8 stop at 16 bit on this CPU; see int8_probe.hpp.
  bool saturates() const {
    OwnedCompiled compiled;
    compile(core_, model_, {{"INFERENCE_PRECISION_HINT", "f32"}, {"INFERENCE_NUM_THREADS", "1"}},
            compiled);
    OwnedRequest request;
    OwnedTensor images, sums;
    need(ov().compiled_model_create_infer_request(compiled.get(), request.receive()));
    need(ov().tensor_create(uint8, Sizes(1, {kProbeTerms, 1, 1}).shape(), images.receive()));
    std::fill_n(data_of<std::uint8_t>(images), kProbeTerms, kProbeLeft);
    need(ov().infer_request_set_tensor(request.get(), "x", images.get()));
    need(ov().infer_request_infer(request.get()));
    need(ov().infer_request_get_tensor(request.get(), "y", sums.receive()));
    const auto *const found = data_of<const float>(sums);
    return is_saturated(found, kProbeChannels);
  }

  int uint8 = 0, float32 = 0;  // OpenVINO's numbers of the types

 private:
  const OwnedCore &core_;
  OwnedModel model_;
};

// OpenVINO's core, one for the process, which never ends. Each core gives the thread that makes it a stack
// for signals, and takes it away when it ends. Of two that end in the order in which they were made, the
// second one puts the stack of the first back, which is gone then: a signal that the host handles on such
// a stack would end the process.
const OwnedCore &process_core() {
  static const OwnedCore *const core = [] {
    auto made = std::make_unique<OwnedCore>();
    need(ov().core_create(made->receive()));
    return made.release();
  }();
  return *core;
}

class OpenVinoBackend final : public Backend {
 public:
  OpenVinoBackend(const Request &request, const Spec &spec) : spec_(spec) {
    if (request.device != "cpu")
      throw backend_error("device " + in_quotes(request.device) +
                          ": the OpenVINO back end runs on 'cpu' only.");
    openvino_api();  // before what needs it, for its own error
    try {
      open(request);
    } catch (const Failure &failure) {
      refuse_shortage(request.path.u8string(), failure.reason);
      throw backend_error(request.path.u8string() + ": OpenVINO cannot open it (" +
                          failure.reason + "). Export it again.");
    }
  }

  std::unique_ptr<Lane> open_lane() override;
  std::string version() const override {
    Version version{};
    if (ov().get_openvino_version(&version) != 0) return "unknown";
    const std::string build = version.build;
    ov().version_free(&version);
    return build;
  }

  const Spec &spec() const { return spec_; }
  int uint8() const { return uint8_; }
  void open_request(OwnedRequest &request) const {
    need(ov().compiled_model_create_infer_request(compiled_.get(), request.receive()));
  }

 private:
  void open(const Request &request) {
    core_ = &process_core();
    const Probe probe(*core_);
    uint8_ = probe.uint8;
    const Properties properties = properties_of(request, probe);
    OwnedModel model;
    need(ov().core_read_model(core_->get(), request.path.u8string().c_str(), nullptr,
                              model.receive()));
    check_tensors(model, probe, request.path);
    compile(*core_, model, properties, compiled_);
  }

  Properties properties_of(const Request &request, const Probe &probe) const {
    const bool half = request.precision == "bf16";
    if (half && !computes_in("BF16"))
      throw backend_error("precision 'bf16': this CPU does not compute in it. Use 'fp32', or an "
                          "INT8 artifact.");
    Properties properties{{"PERFORMANCE_HINT", "LATENCY"},
                          {"INFERENCE_PRECISION_HINT", half ? "bf16" : "f32"}};
    if (request.threads > 0)
      properties.emplace_back("INFERENCE_NUM_THREADS", std::to_string(request.threads));
    if (request.streams > 0)
      properties.emplace_back("NUM_STREAMS", std::to_string(request.streams));
    // There are no exact INT8 kernels then; in float32, the rounded values add up rightly.
    if (spec_.precision == "int8" && probe.saturates()) {
      properties.emplace_back("LP_TRANSFORMS_MODE", "NO");
      request.log.warn(spec_.artifact.file +
                       ": this CPU has no VNNI, without which OpenVINO's INT8 sums stop at 16 bit; "
                       "its INT8 layers run in float32. Back end onnxruntime runs them in exact "
                       "INT8.");
    }
    return properties;
  }

  bool computes_in(const std::string &wanted) const {
    char *text = nullptr;
    need(ov().core_get_property(core_->get(), "CPU", "OPTIMIZATION_CAPABILITIES", &text));
    std::istringstream words(text);
    ov().free(text);
    for (std::string word; words >> word;)
      if (word == wanted) return true;
    return false;
  }

  // Buffers are sized by the spec, so the graph must agree with it.
  void check_tensors(const OwnedModel &model, const Probe &probe,
                     const std::filesystem::path &path) const {
    const Size input = spec_.input, map = spec_.map;
    std::size_t inputs = 0;
    need(ov().model_inputs_size(model.get(), &inputs));
    OwnedPort image, anomaly_map, score;
    const bool fits =
        inputs == 1 &&
        ov().model_const_input_by_name(model.get(), spec_.input_name.c_str(), image.receive()) == 0 &&
        ov().model_const_output_by_name(model.get(), spec_.map_name.c_str(),
                                        anomaly_map.receive()) == 0 &&
        ov().model_const_output_by_name(model.get(), spec_.score_name.c_str(), score.receive()) ==
            0 &&
        is_of(image, probe.uint8, {-1, {input.height, input.width, 3}}) &&
        is_of(anomaly_map, probe.float32, {-1, {map.height, map.width}}) &&
        is_of(score, probe.float32, {-1, {}});
    if (!fits)
      throw backend_error(path.u8string() + ": its tensors are not those of its spec. Export it "
                          "again.");
  }

  static bool is_of(const OwnedPort &port, int type, const Sizes &sizes) {
    int found = 0;
    PartialShape shape{};
    need(ov().port_get_element_type(port.get(), &found));
    need(ov().port_get_partial_shape(port.get(), &shape));
    const bool fits = found == type && sizes.fits(shape);
    ov().partial_shape_free(&shape);
    return fits;
  }

  const Spec &spec_;
  const OwnedCore *core_ = nullptr;
  OwnedCompiled compiled_;
  int uint8_ = 0;
};

class OpenVinoLane final : public Lane {
 public:
  explicit OpenVinoLane(const OpenVinoBackend &backend)
      : spec_(backend.spec()), uint8_(backend.uint8()) {
    guarded([&] { backend.open_request(request_); });
  }

  std::uint8_t *images(int count) override {
    guarded([&] {
      if (count == count_) return;
      count_ = 0;  // should what follows fail
      const Size size = spec_.input;
      need(ov().tensor_create(uint8_, Sizes(count, {size.height, size.width, 3}).shape(),
                              images_.receive()));
      need(ov().infer_request_set_tensor(request_.get(), spec_.input_name.c_str(), images_.get()));
      count_ = count;
    });
    return data_of<std::uint8_t>(images_);
  }

  void run(int count) override {
    bool fits = false;
    guarded([&] {
      // On OpenVINO's own thread. Where the host's threads take turns, what OpenVINO 2026.4 holds grows by
      // some 130 bytes with each inference that runs on them.
      need(ov().infer_request_start_async(request_.get()));
      need(ov().infer_request_wait(request_.get()));
      need(ov().infer_request_get_tensor(request_.get(), spec_.map_name.c_str(), maps_.receive()));
      need(ov().infer_request_get_tensor(request_.get(), spec_.score_name.c_str(),
                                         scores_.receive()));
      fits = Sizes(count, {spec_.map.height, spec_.map.width}).is_of(maps_.get()) &&
             Sizes(count, {}).is_of(scores_.get());
    });
    if (!fits)
      throw backend_error(spec_.artifact.file + ": its tensors are not those of its spec. Export "
                          "it again.");
  }

  const float *maps() const override { return data_of<const float>(maps_); }
  const float *scores() const override { return data_of<const float>(scores_); }

 private:
  template <typename Call>
  void guarded(const Call &call) const {
    try {
      call();
    } catch (const Failure &failure) {
      refuse_shortage(spec_.artifact.file, failure.reason);
      throw backend_error(spec_.artifact.file + ": OpenVINO failed (" + failure.reason + ").");
    }
  }

  const Spec &spec_;
  const int uint8_;
  OwnedRequest request_;
  OwnedTensor images_, maps_, scores_;
  int count_ = 0;
};

std::unique_ptr<Lane> OpenVinoBackend::open_lane() {
  return std::make_unique<OpenVinoLane>(*this);
}

}  // namespace
}  // namespace destseg_core::openvino

namespace destseg_core {

void load_openvino() { openvino::openvino_api(); }

std::unique_ptr<Backend> open_openvino(const Request &request, const Spec &spec) {
  return std::make_unique<openvino::OpenVinoBackend>(request, spec);
}

}  // namespace destseg_core
