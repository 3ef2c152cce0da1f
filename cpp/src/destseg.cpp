// The border: arguments are checked, exceptions become a status and a text.
#include "destseg.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <exception>
#include <limits>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "backend.hpp"
#include "error.hpp"
#include "options.hpp"
#include "pixel_formats.hpp"
#include "predictor.hpp"
#include "registry.hpp"
#include "structs.hpp"
#include "text.hpp"

namespace destseg_core {
namespace {

thread_local std::string last_error;

destseg_status failed(destseg_status status, const std::exception &error) noexcept {
  try {
    last_error = status == DESTSEG_ERROR_INTERNAL ? one_line(error.what()) : error.what();
  } catch (...) {  // no memory for the text; what is there is shorter than nothing
    last_error.clear();
  }
  return status;
}

struct OutOfMemory : std::exception {
  const char *what() const noexcept override {
    return "out of memory. Close other programs, pass fewer or smaller frames, or take a machine with "
           "more.";
  }
};
struct NoException : std::exception {
  const char *what() const noexcept override { return "an exception that is no std::exception"; }
};

template <typename Call>
destseg_status guarded(const Call &call) noexcept {
  try {
    call();
    return DESTSEG_OK;
  } catch (const Error &error) {
    return failed(error.status, error);
  } catch (const std::bad_alloc &) {
    return failed(DESTSEG_ERROR_MEMORY, OutOfMemory());
  } catch (const std::exception &error) {  // of a runtime, perhaps of many lines
    return failed(DESTSEG_ERROR_INTERNAL, error);
  } catch (...) {
    return failed(DESTSEG_ERROR_INTERNAL, NoException());
  }
}

std::vector<destseg_frame> known_frames(const destseg_frame *frames, std::int32_t count) {
  if (count < 1)
    throw shape_error("frames: none were passed. Pass at least one uint8 (H, W, 3) frame.");
  if (frames == nullptr) throw argument_error("frames: null. Pass an array of destseg_frame.");
  std::vector<destseg_frame> known;
  for (std::size_t i = 0; i < static_cast<std::size_t>(count); ++i) {
    const auto *frame = element<const destseg_frame, const char>(frames, frames->struct_size, i);
    known.push_back(known_part(frame, "frame"));
    if (frame->struct_size != frames->struct_size)
      throw argument_error("frames: struct_size " + std::to_string(frame->struct_size) + " and " +
                           std::to_string(frames->struct_size) +
                           ", expected the same in each frame of an array.");
    check_rest(*frame, "frame");
  }
  return known;
}

// Where verdicts go, DESTSEG_UNDECIDED until then: a host that does not look at the status of a call that
// fails must not take the zero of its own struct for DESTSEG_NORMAL.
Answers<destseg_result> undecided(destseg_result *results, std::int32_t count, const char *name) {
  const Answers<destseg_result> answers(results, name);
  for (std::int32_t i = 0; i < count; ++i)
    answers.at(static_cast<std::size_t>(i))->verdict = DESTSEG_UNDECIDED;
  return answers;
}

destseg_info info_of(const Spec &spec) {
  destseg_info info{};
  info.any_size = spec.any_size() ? 1 : 0;
  info.height = spec.input.height, info.width = spec.input.width;
  info.network_height = spec.network.height, info.network_width = spec.network.width;
  info.map_height = spec.map.height, info.map_width = spec.map.width;
  info.batch_min = spec.batch.min, info.batch_opt = spec.batch.opt;
  info.batch_max = spec.batch.max;
  info.top_k = spec.top_k;
  info.has_threshold = spec.threshold ? 1 : 0;
  const double none = std::numeric_limits<double>::quiet_NaN();
  const std::int64_t images = spec.threshold ? spec.threshold->images : 0;
  info.threshold_images = static_cast<std::int32_t>(
      std::clamp<std::int64_t>(images, 0, std::numeric_limits<std::int32_t>::max()));
  info.threshold_score = spec.threshold ? spec.threshold->score : none;
  info.threshold_pixel = spec.threshold ? spec.threshold->pixel : none;
  return info;
}

void copy_text(const std::string &text, char *buffer, std::size_t size, std::size_t *needed) {
  if (needed != nullptr) *needed = text.size() + 1;
  if (buffer == nullptr && size == 0) return;
  if (buffer == nullptr) throw argument_error("buffer: null. Pass size 0 to ask for the size.");
  if (size > 0) buffer[0] = '\0';
  if (size < text.size() + 1)
    throw argument_error("buffer: " + std::to_string(size) + " bytes, expected at least " +
                         std::to_string(text.size() + 1) + ".");
  std::memcpy(buffer, text.c_str(), text.size() + 1);
}

void check_room(const char *name, const void *memory, std::int32_t room) {
  if (room < 0 || (room > 0 && memory == nullptr))
    throw argument_error(std::string(name) + ": room for " + std::to_string(room) +
                         (memory == nullptr ? " at a null pointer" : "") +
                         ". Pass memory and how many fit, or NULL and 0.");
}

template <typename T>
std::size_t first_of(const std::vector<T> &found, std::int32_t room) {
  return std::min(found.size(), static_cast<std::size_t>(room));
}

std::string joined_backends() {
  std::string joined;
  for (const std::string &name : backend_names()) joined += (joined.empty() ? "" : ", ") + name;
  return joined;
}

}  // namespace
}  // namespace destseg_core

using namespace destseg_core;

uint32_t destseg_abi_version(void) noexcept { return DESTSEG_ABI_VERSION; }

const char *destseg_version(void) noexcept { return DESTSEG_VERSION; }

const char *destseg_backends(void) noexcept {
  try {
    static const std::string *const names = new std::string(joined_backends());
    return names->c_str();
  } catch (...) {
    return "";
  }
}

const char *destseg_last_error(void) noexcept { return last_error.c_str(); }

destseg_status destseg_open(const char *path, const destseg_options *options,
                            destseg_predictor **predictor) noexcept {
  return guarded([&] {
    if (predictor == nullptr) throw argument_error("predictor: null. Pass where the handle goes.");
    *predictor = nullptr;
    const Opening opening = opening_of(path, options);
    *predictor = add_handle(std::make_shared<Predictor>(opening.request, opening.parallel),
                            opening.queue);
  });
}

destseg_status destseg_reload(destseg_predictor *predictor, const char *path) noexcept {
  return guarded([&] {
    if (path == nullptr) throw argument_error("path: null. Pass the artifact's path.");
    const InUse found = find_handle(predictor);
    check_there(path_of(path));
    found.replace(std::make_shared<Predictor>(found->request_for(path_of(path)), found->parallel()));
  });
}

destseg_status destseg_warm_up(destseg_predictor *predictor) noexcept {
  return guarded([&] { find_handle(predictor)->warm_up(); });
}

destseg_status destseg_get_times(destseg_predictor *predictor, destseg_times *times) noexcept {
  return guarded([&] {
    if (times == nullptr) throw argument_error("times: null. Pass where they go.");
    Answers<destseg_times>(times, "times").put(0, find_handle(predictor)->times());
  });
}

void destseg_close(destseg_predictor *predictor) noexcept {
  guarded([&] { remove_handle(predictor); });
}

destseg_status destseg_get_info(destseg_predictor *predictor, destseg_info *info) noexcept {
  return guarded([&] {
    if (info == nullptr) throw argument_error("info: null. Pass where it goes.");
    const std::uint32_t size = known_part(info, "info").struct_size;
    destseg_info found = info_of(find_handle(predictor)->spec());
    found.struct_size = size;
    std::memcpy(info, &found, std::min<std::size_t>(size, sizeof found));
  });
}

destseg_status destseg_get_text(destseg_predictor *predictor, const char *name, char *buffer,
                                size_t size, size_t *needed) noexcept {
  return guarded([&] {
    if (needed != nullptr) *needed = 0;
    if (name == nullptr) throw argument_error("name: null. Pass the name of a text.");
    copy_text(find_handle(predictor)->text(name), buffer, size, needed);
  });
}

destseg_status destseg_infer(destseg_predictor *predictor, const destseg_frame *frames,
                             int32_t count, destseg_result *results, float *maps,
                             size_t maps_floats) noexcept {
  return guarded([&] {
    if (results == nullptr) throw argument_error("results: null. Pass room for one per frame.");
    const Answers<destseg_result> answers = undecided(results, count, "results");
    const auto found = find_handle(predictor);
    const std::vector<destseg_frame> known = known_frames(frames, count);
    std::vector<destseg_result> judged(known.size());
    found->infer(known.data(), count, judged.data(), maps, maps_floats);
    for (std::size_t i = 0; i < judged.size(); ++i) answers.put(i, judged[i]);
  });
}

destseg_status destseg_submit(destseg_predictor *predictor, const destseg_frame *frames,
                              int32_t count, int32_t timeout_ms, uint64_t *ticket) noexcept {
  return guarded([&] {
    if (ticket == nullptr) throw argument_error("ticket: null. Pass where its number goes.");
    *ticket = 0;
    const auto found = find_handle(predictor);
    const std::vector<destseg_frame> known = known_frames(frames, count);
    *ticket = found.queue().submit(found.shared(), known.data(), count, timeout_ms);
  });
}

destseg_status destseg_wait(destseg_predictor *predictor, uint64_t ticket, int32_t timeout_ms,
                            int32_t count, destseg_result *results, float *maps,
                            size_t maps_floats) noexcept {
  return guarded([&] {
    if (results == nullptr) throw argument_error("results: null. Pass room for one per frame.");
    const Answers<destseg_result> answers = undecided(results, count, "results");
    const auto found = find_handle(predictor);
    const auto fits = [&](std::size_t frames, std::size_t floats) {
      if (count < 0 || static_cast<std::size_t>(count) != frames)
        throw argument_error("count: " + std::to_string(count) + ", expected the " +
                             std::to_string(frames) + " of the ticket.");
      if (maps != nullptr && maps_floats < floats)
        throw argument_error("maps: room for " + std::to_string(maps_floats) +
                             " floats, expected " + std::to_string(floats) + ".");
    };
    const auto done = found.queue().collect(ticket, timeout_ms, fits);
    for (std::size_t i = 0; i < done->results.size(); ++i) answers.put(i, done->results[i]);
    if (maps != nullptr) std::copy(done->maps.begin(), done->maps.end(), maps);
  });
}

destseg_status destseg_crop(const destseg_frame *frame, int32_t x, int32_t y, int32_t width,
                            int32_t height, destseg_frame *part) noexcept {
  return guarded([&] {
    if (part == nullptr) throw argument_error("part: null. Pass where the view goes.");
    const destseg_frame known = known_frames(frame, 1).front();
    const destseg_frame view = cropped(known, x, y, width, height);
    std::memcpy(part, &view, sizeof view);  // of the size of the frame, which it may be
    std::memset(reinterpret_cast<char *>(part) + sizeof view, 0, view.struct_size - sizeof view);
  });
}

destseg_status destseg_map_at_frame(destseg_predictor *predictor, const float *map, int32_t height,
                                    int32_t width, float *target, size_t target_floats) noexcept {
  return guarded(
      [&] { find_handle(predictor)->map_at_frame(map, height, width, target, target_floats); });
}

destseg_status destseg_judge(destseg_predictor *predictor, float score,
                             destseg_result *result) noexcept {
  return guarded([&] {
    if (result == nullptr) throw argument_error("result: null. Pass where it goes.");
    const Answers<destseg_result> answer = undecided(result, 1, "result");
    const auto found = find_handle(predictor);
    if (!found->spec().threshold)
      throw spec_error(found->spec().artifact.file +
                       ": no threshold set yet. Set one from normal images: destseg-threshold "
                       "ARTIFACT --good FOLDER");
    if (!is_answer(score))
      throw argument_error("score: " + digits_of(score) +
                           ", expected a number from 0 to 1. Pass a score of destseg_infer.");
    answer.put(0, found->judge(score));
  });
}

destseg_status destseg_defects(destseg_predictor *predictor, const float *map, int32_t height,
                               int32_t width, double threshold, destseg_defect *defects,
                               int32_t defects_room, destseg_point *points, int32_t points_room,
                               int32_t *count, int32_t *point_count) noexcept {
  return guarded([&] {
    if (count == nullptr) throw argument_error("count: null. Pass where it goes.");
    *count = 0;
    if (point_count != nullptr) *point_count = 0;
    check_room("defects", defects, defects_room);
    check_room("points", points, points_room);
    const Defects found = find_handle(predictor)->defects(map, height, width, threshold);
    if (defects_room > 0) {
      const Answers<destseg_defect> answers(defects, "defects");
      for (std::size_t i = 0; i < first_of(found.regions, defects_room); ++i)
        answers.put(i, found.regions[i]);
    }
    std::copy_n(found.points.begin(), first_of(found.points, points_room), points);
    *count = static_cast<std::int32_t>(found.regions.size());
    if (point_count != nullptr) *point_count = static_cast<std::int32_t>(found.points.size());
  });
}
