#include "predictor.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "error.hpp"

namespace destseg_core {
namespace {

Spec checked_spec(const std::filesystem::path &path) {
  Spec spec = read_spec(path);
  check_artifact(spec, path);
  return spec;
}

}  // namespace

Predictor::Predictor(Request request, int parallel)
    : request_(std::move(request)),
      spec_(checked_spec(request_.path)),
      backend_(open_backend(request_, spec_)),
      workers_(parallel, [this] {
        return std::make_unique<Worker>(backend_->open_lane(), spec_, cache_);
      }) {}

void Predictor::infer(const destseg_frame *frames, int count, destseg_result *results, float *maps,
                      std::size_t maps_floats) {
  check(frames, count, results, maps, maps_floats);
  const int group = std::max(spec_.batch.opt, spec_.batch.min);
  Pool<Worker>::Lease worker(workers_);
  for (int done = 0; done < count; done += std::min(group, count - done)) {
    float *target = maps == nullptr ? nullptr
                                    : maps + static_cast<std::size_t>(done) * spec_.map.pixels();
    infer_group(*worker, frames + done, std::min(group, count - done), results + done, target);
  }
}

void Predictor::check(const destseg_frame *frames, int count, const destseg_result *results,
                      const float *maps, std::size_t maps_floats) const {
  if (count < 1)
    throw shape_error("frames: none were passed. Pass at least one uint8 (H, W, 3) frame.");
  if (frames == nullptr) throw argument_error("frames: null. Pass an array of destseg_frame.");
  if (results == nullptr) throw argument_error("results: null. Pass room for one per frame.");
  const std::size_t needed = static_cast<std::size_t>(count) * spec_.map.pixels();
  if (maps != nullptr && maps_floats < needed)
    throw argument_error("maps: room for " + std::to_string(maps_floats) + " floats, expected " +
                         std::to_string(needed) + " (" + std::to_string(count) + " maps of " +
                         std::to_string(spec_.map.height) + " x " +
                         std::to_string(spec_.map.width) + ").");
  for (int i = 0; i < count; ++i) check_frame(frames[i], spec_);
}

void Predictor::infer_group(Worker &worker, const destseg_frame *frames, int count,
                            destseg_result *results, float *maps) {
  const int filled = std::max(count, spec_.batch.min);
  const std::size_t bytes = spec_.input.pixels() * 3;
  std::uint8_t *const images = worker.lane->images(filled);
  for (int i = 0; i < count; ++i)
    worker.fitter.fit(frames[i], images + static_cast<std::size_t>(i) * bytes);
  for (int i = count; i < filled; ++i)  // up to the smallest batch, with answers that are dropped
    std::memcpy(images + static_cast<std::size_t>(i) * bytes, images, bytes);
  worker.lane->run(filled);
  const auto floats = static_cast<std::size_t>(count) * spec_.map.pixels();
  if (maps != nullptr) std::memcpy(maps, worker.lane->maps(), floats * sizeof(float));
  for (int i = 0; i < count; ++i) results[i] = judge(worker.lane->scores()[i]);
}

destseg_result Predictor::judge(float score) const {
  if (!spec_.threshold)
    return {score, std::numeric_limits<float>::quiet_NaN(), DESTSEG_UNDECIDED};
  const Threshold &threshold = *spec_.threshold;
  const bool anomalous = score > static_cast<float>(threshold.score);
  return {score, static_cast<float>(threshold.normalized(static_cast<double>(score))),
          anomalous ? DESTSEG_ANOMALOUS : DESTSEG_NORMAL};
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
    throw argument_error("text " + python_repr(name) + ": " + spec_.artifact.file +
                         " has no such text. See destseg_get_text for the names.");
  return value->text;
}

}  // namespace destseg_core
