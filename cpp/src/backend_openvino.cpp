// OpenVINO on the CPU, in float32 unless asked otherwise: its default is bfloat16 on processors that
// have it.
#include <openvino/openvino.hpp>
#include <openvino/opsets/opset13.hpp>

#include <algorithm>
#include <exception>
#include <new>

#include "backend.hpp"
#include "error.hpp"
#include "int8_probe.hpp"

namespace destseg_core {
namespace {

// y = convolution of uint8 steps by int8 weights, as a quantised graph has them.
std::shared_ptr<ov::Model> probe_model() {
  namespace op = ov::opset13;
  constexpr std::size_t kChannels = 16, kTerms = kProbeTerms;
  const auto constant = [](float value) {
    return op::Constant::create(ov::element::f32, {}, {value});
  };
  const auto images = std::make_shared<op::Parameter>(ov::element::f32, ov::Shape{1, kTerms, 1, 1});
  const auto low = constant(0), high = constant(255);
  const auto steps = std::make_shared<op::FakeQuantize>(images, low, high, low, high, 256);
  const auto whole = op::Constant::create(ov::element::i8, {kChannels, kTerms, 1, 1},
                                          std::vector<std::int8_t>(kChannels * kTerms, kProbeRight));
  const auto scales = op::Constant::create(ov::element::f32, {kChannels, 1, 1, 1},
                                           std::vector<float>(kChannels, 1));
  const auto weights = std::make_shared<op::Multiply>(
      std::make_shared<op::Convert>(whole, ov::element::f32), scales);
  const auto sums = std::make_shared<op::Convolution>(
      steps, weights, ov::Strides{1, 1}, ov::CoordinateDiff{0, 0}, ov::CoordinateDiff{0, 0},
      ov::Strides{1, 1});
  return std::make_shared<ov::Model>(ov::OutputVector{sums}, ov::ParameterVector{images}, "probe");
}

// Whether sums of uint8 by int8 stop at 16 bit on this CPU; see int8_probe.hpp.
bool saturates(ov::Core &core) {
  auto compiled = core.compile_model(probe_model(), "CPU",
                                     ov::hint::inference_precision(ov::element::f32),
                                     ov::inference_num_threads(1));
  ov::InferRequest request = compiled.create_infer_request();
  ov::Tensor images(ov::element::f32, {1, static_cast<std::size_t>(kProbeTerms), 1, 1});
  std::fill_n(images.data<float>(), images.get_size(), static_cast<float>(kProbeLeft));
  request.set_input_tensor(images);
  request.infer();
  const ov::Tensor found = request.get_output_tensor();
  const auto right = [](float sum) { return sum == static_cast<float>(kProbeSum); };
  return !std::all_of(found.data<const float>(), found.data<const float>() + found.get_size(),
                      right);
}

class OpenVinoBackend final : public Backend {
 public:
  OpenVinoBackend(const Request &request, const Spec &spec) : spec_(spec) {
    if (request.device != "cpu")
      throw backend_error("device " + python_repr(request.device) +
                          ": the OpenVINO back end runs on 'cpu' only.");
    try {
      const ov::AnyMap options = options_of(request);
      const auto model = core_.read_model(request.path.u8string());
      check_tensors(*model, request.path);
      model_ = core_.compile_model(model, "CPU", options);
    } catch (const Error &) {
      throw;
    } catch (const std::bad_alloc &) {
      throw;
    } catch (const std::exception &error) {  // its plugins throw others than its own, too
      throw backend_error(request.path.u8string() + ": OpenVINO cannot open it (" +
                          one_line(error.what()) + "). Export it again.");
    }
  }

  std::unique_ptr<Lane> open_lane() override;
  std::string version() const override { return ov::get_openvino_version().buildNumber; }

  const Spec &spec() const { return spec_; }
  ov::InferRequest request() { return model_.create_infer_request(); }

 private:
  ov::AnyMap options_of(const Request &request) {
    const bool half = request.precision == "bf16";
    const auto able = core_.get_property("CPU", ov::device::capabilities);
    if (half && std::find(able.begin(), able.end(), ov::device::capability::BF16) == able.end())
      throw backend_error("precision 'bf16': this CPU does not compute in it. Use 'fp32', or an "
                          "INT8 artifact.");
    ov::AnyMap options{
        ov::hint::performance_mode(ov::hint::PerformanceMode::LATENCY),
        ov::hint::inference_precision(half ? ov::element::bf16 : ov::element::f32)};
    if (request.threads > 0) options.insert(ov::inference_num_threads(request.threads));
    // There are no exact INT8 kernels then; in float32, the rounded values add up rightly.
    if (spec_.precision == "int8" && saturates(core_)) options["LP_TRANSFORMS_MODE"] = "NO";
    return options;
  }

  // Buffers are sized by the spec, so the graph must agree with it.
  void check_tensors(const ov::Model &model, const std::filesystem::path &path) const {
    const auto fits = [](const ov::Output<const ov::Node> &tensor, const std::string &name,
                         ov::element::Type type, const ov::PartialShape &shape) {
      return tensor.get_names().count(name) == 1 && tensor.get_element_type() == type &&
             tensor.get_partial_shape().compatible(shape);
    };
    const int height = spec_.map.height, width = spec_.map.width;
    bool map = false, score = false;
    for (const auto &tensor : model.outputs()) {
      map = map || fits(tensor, spec_.map_name, ov::element::f32, {-1, height, width});
      score = score || fits(tensor, spec_.score_name, ov::element::f32, {-1});
    }
    const ov::PartialShape input{-1, spec_.input.height, spec_.input.width, 3};
    if (!map || !score || model.inputs().size() != 1 ||
        !fits(model.inputs()[0], spec_.input_name, ov::element::u8, input))
      throw backend_error(path.u8string() + ": its tensors are not those of its spec. Export it "
                          "again.");
  }

  const Spec &spec_;
  ov::Core core_;
  ov::CompiledModel model_;
};

class OpenVinoLane final : public Lane {
 public:
  explicit OpenVinoLane(OpenVinoBackend &backend)
      : spec_(backend.spec()), request_(backend.request()) {}

  std::uint8_t *images(int count) override {
    if (count != count_) {
      count_ = 0;  // should what follows fail
      const Size size = spec_.input;
      images_ = ov::Tensor(ov::element::u8, shape(count, {size.height, size.width, 3}));
      request_.set_tensor(spec_.input_name, images_);
      count_ = count;
    }
    return images_.data<std::uint8_t>();
  }

  void run(int count) override {
    try {
      request_.infer();
      maps_ = request_.get_tensor(spec_.map_name);
      scores_ = request_.get_tensor(spec_.score_name);
    } catch (const std::bad_alloc &) {
      throw;
    } catch (const std::exception &error) {
      throw backend_error(spec_.artifact.file + ": OpenVINO failed (" + one_line(error.what()) +
                          ").");
    }
    if (maps_.get_shape() != shape(count, {spec_.map.height, spec_.map.width}) ||
        scores_.get_shape() != shape(count, {}))
      throw backend_error(spec_.artifact.file + ": its tensors are not those of its spec. Export "
                          "it again.");
  }

  const float *maps() const override { return maps_.data<const float>(); }
  const float *scores() const override { return scores_.data<const float>(); }

 private:
  static ov::Shape shape(int count, std::initializer_list<int> sizes) {
    ov::Shape result{static_cast<std::size_t>(count)};
    for (const int size : sizes) result.push_back(static_cast<std::size_t>(size));
    return result;
  }

  const Spec &spec_;
  ov::InferRequest request_;
  ov::Tensor images_, maps_, scores_;
  int count_ = 0;
};

std::unique_ptr<Lane> OpenVinoBackend::open_lane() {
  return std::make_unique<OpenVinoLane>(*this);
}

}  // namespace

std::unique_ptr<Backend> open_openvino(const Request &request, const Spec &spec) {
  return std::make_unique<OpenVinoBackend>(request, spec);
}

}  // namespace destseg_core
