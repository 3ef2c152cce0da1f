#include "predictor.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "error.hpp"
#include "pixel_formats.hpp"
#include "text.hpp"
#include "tuning.hpp"

namespace destseg_core {
namespace {

Spec checked_spec(const std::filesystem::path &path) {
  Spec spec = read_spec(path);
  check_artifact(spec, path);
  return spec;
}

// Milliseconds since it was made, or since the last lap.
class Stopwatch {
 public:
  double lap() {
    const auto now = std::chrono::steady_clock::now();
    const std::chrono::duration<double, std::milli> taken = now - begin_;
    begin_ = now;
    return taken.count();
  }

 private:
  std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
};

void check_map(const float *map, int height, int width) {
  if (map == nullptr) throw argument_error("map: null. Pass a map of destseg_infer.");
  check_sides(height, width);
}

// How far outside of [0, 1] rounding may leave an answer.
constexpr float kRounding = 1e-5f;

}  // namespace

// NaN is neither above nor below anything, so the comparison asks for what is right.
bool is_answer(float value) { return value >= -kRounding && value <= 1 + kRounding; }

Predictor::Predictor(Request request, int parallel)
    : request_(std::move(request)),
      parallel_(parallel),
      spec_(checked_spec(request_.path)),
      backend_(open_backend(request_, spec_)),
      workers_(parallel, [this] {
        return std::make_unique<Worker>(backend_->open_lane(), spec_, cache_);
      }) {
  if (request_.tuned) check_tuning(request_, spec_.artifact.sha256, backend_->version());
  request_.log.info(request_.path.u8string() + ": opened by " + request_.backend + " " +
                    backend_->version() + " on " + request_.device + ", " +
                    std::to_string(parallel) + " calls at once.");
}

void Predictor::infer(const destseg_frame *frames, int count, destseg_result *results, float *maps,
                      std::size_t maps_floats) {
  check(frames, count, maps, maps_floats);
  infer_all(frames, count, results, maps, {});
}

Prepared Predictor::prepare(const destseg_frame *frames, int count) {
  check(frames, count, nullptr, 0);
  Stopwatch watch;
  const std::size_t bytes = spec_.input.pixels() * 3;
  Prepared prepared;
  prepared.count = count;
  prepared.pixels.resize(static_cast<std::size_t>(count) * bytes);
  FrameFitter fitter(spec_, cache_);
  for (int i = 0; i < count; ++i)
    fitter.fit(frames[i], prepared.pixels.data() + static_cast<std::size_t>(i) * bytes);
  prepared.milliseconds = watch.lap();
  return prepared;
}

void Predictor::infer(const Prepared &prepared, destseg_result *results, float *maps,
                      std::size_t maps_floats) {
  destseg_frame frame{};
  frame.format = DESTSEG_RGB8;
  frame.height = spec_.input.height, frame.width = spec_.input.width;
  std::vector<destseg_frame> frames(static_cast<std::size_t>(prepared.count), frame);
  for (std::size_t i = 0; i < frames.size(); ++i)
    frames[i].pixels = prepared.pixels.data() + i * spec_.input.pixels() * 3;
  check(frames.data(), prepared.count, maps, maps_floats);
  destseg_times times{};
  times.prepared_ms = prepared.milliseconds;
  infer_all(frames.data(), prepared.count, results, maps, times);
}

void Predictor::infer_all(const destseg_frame *frames, int count, destseg_result *results,
                          float *maps, destseg_times times) {
  const int group = std::max(spec_.batch.opt, spec_.batch.min);
  Stopwatch watch;
  Pool<Worker>::Lease worker(workers_);
  times.waited_ms = watch.lap();
  for (int done = 0; done < count; done += std::min(group, count - done)) {
    float *target = maps == nullptr ? nullptr
                                    : maps + static_cast<std::size_t>(done) * spec_.map.pixels();
    infer_group(*worker, frames + done, std::min(group, count - done), results + done, target,
                times);
  }
  times.frames = count;
  const std::lock_guard<std::mutex> lock(times_mutex_);
  times_ = times;
}

destseg_times Predictor::times() const {
  const std::lock_guard<std::mutex> lock(times_mutex_);
  return times_;
}

void Predictor::warm_up() {
  const std::lock_guard<std::mutex> lock(warm_up_mutex_);
  std::vector<std::unique_ptr<Pool<Worker>::Lease>> all;  // at once, so that each is another
  for (int i = 0; i < parallel_; ++i)
    all.push_back(std::make_unique<Pool<Worker>::Lease>(workers_));
  for (const auto &worker : all)
    for (const int count : {spec_.batch.min, std::max(spec_.batch.opt, spec_.batch.min)}) {
      Lane &lane = *(*worker)->lane;
      std::memset(lane.images(count), 128, static_cast<std::size_t>(count) * spec_.input.pixels() * 3);
      lane.run(count);
    }
}

Request Predictor::request_for(std::filesystem::path path) const {
  Request request = request_;
  request.path = std::move(path);
  if (suffix_of(request.path) != suffix_of(request_.path))
    throw backend_error(request.path.u8string() + ": the handle was opened with a " +
                        suffix_of(request_.path) + ". Reload one of the same kind.");
  if (request.tuned) follow_tuning(request);
  return request;
}

void Predictor::check(const destseg_frame *frames, int count, const float *maps,
                      std::size_t maps_floats) const {
  const std::size_t needed = static_cast<std::size_t>(count) * spec_.map.pixels();
  if (maps != nullptr && maps_floats < needed)
    throw argument_error("maps: room for " + std::to_string(maps_floats) + " floats, expected " +
                         std::to_string(needed) + " (" + std::to_string(count) + " maps of " +
                         std::to_string(spec_.map.height) + " x " +
                         std::to_string(spec_.map.width) + ").");
  for (int i = 0; i < count; ++i) check_frame(frames[i], spec_);
}

void Predictor::infer_group(Worker &worker, const destseg_frame *frames, int count,
                            destseg_result *results, float *maps, destseg_times &times) {
  Stopwatch watch;
  const int filled = std::max(count, spec_.batch.min);
  const std::size_t bytes = spec_.input.pixels() * 3;
  std::uint8_t *const images = worker.lane->images(filled);
  for (int i = 0; i < count; ++i)
    worker.fitter.fit(frames[i], images + static_cast<std::size_t>(i) * bytes);
  for (int i = count; i < filled; ++i)  // up to the smallest batch, with answers that are dropped
    std::memcpy(images + static_cast<std::size_t>(i) * bytes, images, bytes);
  times.prepared_ms += watch.lap();
  worker.lane->run(filled);
  times.inferred_ms += watch.lap();
  const auto floats = static_cast<std::size_t>(count) * spec_.map.pixels();
  check_answers("anomaly map", worker.lane->maps(), floats);
  check_answers("score", worker.lane->scores(), static_cast<std::size_t>(count));
  if (maps != nullptr) std::memcpy(maps, worker.lane->maps(), floats * sizeof(float));
  for (int i = 0; i < count; ++i) results[i] = judge(worker.lane->scores()[i]);
  times.finished_ms += watch.lap();
}

void Predictor::check_answers(const char *name, const float *values, std::size_t count) const {
  const float *const wrong =
      std::find_if_not(values, values + count, [](float value) { return is_answer(value); });
  if (wrong == values + count) return;
  throw backend_error(spec_.artifact.file + ": the runtime returned the " + name + " " +
                      digits_of(*wrong) + ", expected a number from 0 to 1. No verdict is "
                      "made of it. Compare the artifact with its checkpoint (destseg-bench "
                      "agreement), or export it again with --precision fp32.");
}

destseg_result Predictor::judge(float score) const {
  if (!spec_.threshold)
    return {0, score, std::numeric_limits<float>::quiet_NaN(), DESTSEG_UNDECIDED};
  const Threshold &threshold = *spec_.threshold;
  const bool anomalous = score > static_cast<float>(threshold.score);
  return {0, score, static_cast<float>(threshold.normalized(static_cast<double>(score))),
          anomalous ? DESTSEG_ANOMALOUS : DESTSEG_NORMAL};
}

Defects Predictor::defects(const float *map, int height, int width, double threshold) const {
  check_map(map, height, width);
  const float *const end = map + spec_.map.pixels();
  const float *const wrong = std::find_if_not(map, end, is_answer);
  if (wrong != end)
    throw argument_error("map: " + digits_of(*wrong) + " in it, expected numbers from 0 to 1. "
                         "Pass a map of destseg_infer.");
  if (!(threshold <= 1))
    throw argument_error("threshold: " + digits_of(threshold) +
                         ", expected 0 to 1, or a negative one for the artifact's own.");
  if (threshold < 0 && !spec_.threshold)
    throw spec_error(spec_.artifact.file + ": no threshold set yet. Set one from normal images: "
                     "destseg-threshold ARTIFACT --good FOLDER");
  const double cut = threshold < 0 ? spec_.threshold->pixel : threshold;
  return find_defects(map, spec_.map, {height, width}, static_cast<float>(cut));
}

void Predictor::map_at_frame(const float *map, int height, int width, float *target,
                             std::size_t target_floats) const {
  check_map(map, height, width);
  const Size frame{height, width};
  if (target == nullptr || target_floats < frame.pixels())
    throw argument_error("target: room for " + std::to_string(target_floats) +
                         " floats, expected " + std::to_string(frame.pixels()) + " (" +
                         std::to_string(height) + " x " + std::to_string(width) + ").");
  enlarge(map, spec_.map, frame, target);
}

std::string Predictor::text(const std::string &name) const {
  if (name == "spec") return spec_.text;
  if (name == "backend") return request_.backend;
  if (name == "backend.version") return backend_->version();
  if (name == "device") return request_.device;
  const Json *value = &spec_.json;
  for (std::size_t at = 0; value != nullptr && at <= name.size();) {
    const std::size_t dot = std::min(name.find('.', at), name.size());
    value = value->find(std::string_view(name).substr(at, dot - at));
    at = dot + 1;
  }
  if (value == nullptr || value->kind != Json::Kind::string)
    throw argument_error("text " + in_quotes(name) + ": " + spec_.artifact.file +
                         " has no such text. See destseg_get_text for the names.");
  return value->text;
}

}  // namespace destseg_core
