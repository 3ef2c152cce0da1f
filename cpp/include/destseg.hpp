// destseg.hpp: destseg.h for C++17. Header-only; adds ownership, exceptions and views of memory.
//
//     destseg::Predictor predictor("cable-fp32.onnx");
//     destseg::Prediction prediction = predictor.infer(destseg::rgb(pixels, height, width));
//     if (prediction.results[0].verdict != DESTSEG_NORMAL) reject();  // NG, or no threshold yet
//
// Where OpenCV's core is included before this file, it also takes cv::Mat, in OpenCV's BGR order.
#ifndef DESTSEG_HPP
#define DESTSEG_HPP

#include <cstddef>
#include <cstdint>
#include <exception>
#include <filesystem>
#include <functional>
#include <limits>
#include <memory>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <system_error>
#include <type_traits>
#include <utility>
#include <vector>

#include "destseg.h"

namespace destseg {

// Thrown when a call of the C ABI returns another status than DESTSEG_OK. what() says what was
// wrong, what was expected and what to do.
class Error : public std::runtime_error {
 public:
  Error(destseg_status code, const std::string &message)
      : std::runtime_error(message), status_(code) {}
  destseg_status status() const noexcept { return status_; }

 private:
  destseg_status status_;
};
class SpecError : public Error {
  using Error::Error;
};
class ShapeError : public Error {
  using Error::Error;
};
class BackendError : public Error {
  using Error::Error;
};
// Not enough memory; also caught as std::bad_alloc.
class MemoryError : public std::bad_alloc {
 public:
  explicit MemoryError(const std::string &message) : text_(message) {}
  const char *what() const noexcept override { return text_.what(); }

 private:
  std::runtime_error text_;  // whose copies throw nothing
};

namespace detail {

inline void check(destseg_status code) {
  if (code == DESTSEG_OK) return;
  const std::string message = destseg_last_error();
  switch (code) {
    case DESTSEG_ERROR_SPEC: throw SpecError(code, message);
    case DESTSEG_ERROR_SHAPE: throw ShapeError(code, message);
    case DESTSEG_ERROR_BACKEND: throw BackendError(code, message);
    case DESTSEG_ERROR_MEMORY: throw MemoryError(message);
    default: throw Error(code, message);
  }
}

inline std::int32_t count_of(std::size_t size) {
  if (size > static_cast<std::size_t>((std::numeric_limits<std::int32_t>::max)()))
    throw Error(DESTSEG_ERROR_ARGUMENT, "frames: more than 2^31 - 1. Pass them in turn.");
  return static_cast<std::int32_t>(size);
}

// A path as the C ABI takes it.
inline std::string utf8(const std::filesystem::path &path) {
  try {
    const auto text = path.u8string();  // of char8_t since C++20
    return std::string(text.begin(), text.end());
  } catch (const std::exception &) {
    throw Error(DESTSEG_ERROR_ARGUMENT, "path: not Unicode. Pass the name of a file.");
  }
}

inline std::string utf8(const std::wstring &path) {
  try {
    return utf8(std::filesystem::path(path));
  } catch (const std::system_error &) {
    throw Error(DESTSEG_ERROR_ARGUMENT, "path: not Unicode. Pass the name of a file.");
  }
}

}  // namespace detail

// A view of contiguous values, like std::span of C++20.
template <typename T>
class Span {
 public:
  constexpr Span() noexcept = default;
  constexpr Span(T *data, std::size_t size) noexcept : data_(data), size_(size) {}
  template <typename Container,
            typename = std::enable_if_t<std::is_convertible_v<
                decltype(std::declval<Container &>().data()), T *>>>
  constexpr Span(Container &container) noexcept
      : data_(container.data()), size_(container.size()) {}
  constexpr T *data() const noexcept { return data_; }
  constexpr std::size_t size() const noexcept { return size_; }
  constexpr bool empty() const noexcept { return size_ == 0; }
  constexpr T *begin() const noexcept { return data_; }
  constexpr T *end() const noexcept { return data_ + size_; }
  constexpr T &operator[](std::size_t index) const noexcept { return data_[index]; }

 private:
  T *data_ = nullptr;
  std::size_t size_ = 0;
};

// Views of the caller's pixels; see destseg_frame for the stride.
inline destseg_frame frame(const std::uint8_t *pixels, int height, int width, std::int32_t format,
                           std::int64_t stride = 0) noexcept {
  destseg_frame view{};
  view.struct_size = sizeof view;
  view.pixels = pixels;
  view.stride = stride;
  view.height = height;
  view.width = width;
  view.format = format;
  return view;
}
inline destseg_frame grey(const std::uint8_t *pixels, int height, int width,
                          std::int64_t stride = 0) noexcept {
  return frame(pixels, height, width, DESTSEG_GREY8, stride);
}
inline destseg_frame rgb(const std::uint8_t *pixels, int height, int width,
                         std::int64_t stride = 0) noexcept {
  return frame(pixels, height, width, DESTSEG_RGB8, stride);
}
inline destseg_frame bgr(const std::uint8_t *pixels, int height, int width,
                         std::int64_t stride = 0) noexcept {
  return frame(pixels, height, width, DESTSEG_BGR8, stride);
}

// A part of a frame, in its pixels; (0, 0) is the top left one.
struct Region {
  int x = 0;
  int y = 0;
  int width = 0;
  int height = 0;
};

// A view of a part of a frame, without a copy; see destseg_crop.
inline destseg_frame crop(const destseg_frame &whole, const Region &region) {
  destseg_frame part{};
  detail::check(destseg_crop(&whole, region.x, region.y, region.width, region.height, &part));
  return part;
}

#ifdef CV_VERSION
// A view of an 8-bit Mat of one channel (grey) or three (BGR); regions of interest are fine.
inline destseg_frame frame(const cv::Mat &image) {
  if (image.dims != 2 || (image.type() != CV_8UC1 && image.type() != CV_8UC3))
    throw ShapeError(DESTSEG_ERROR_SHAPE, "frame: expected a cv::Mat of type CV_8UC1 or CV_8UC3, "
                                          "got type " + std::to_string(image.type()) + ".");
  const std::int32_t format = image.channels() == 1 ? DESTSEG_GREY8 : DESTSEG_BGR8;
  return frame(image.data, image.rows, image.cols, format,
               static_cast<std::int64_t>(image.step[0]));
}
#endif

// Answers for frames, in order.
struct Prediction {
  std::vector<destseg_result> results;
  std::vector<float> maps;  // (frames, height, width), in [0, 1]
  int height = 0;
  int width = 0;

  std::size_t size() const noexcept { return results.size(); }
  // The map of a frame: height * width values, row by row.
  Span<const float> map(std::size_t index) const {
    const std::size_t pixels =
        static_cast<std::size_t>(height) * static_cast<std::size_t>(width);
    if (index >= results.size()) throw std::out_of_range("destseg::Prediction::map");
    return {maps.data() + index * pixels, pixels};
  }
#ifdef CV_VERSION
  // The map of a frame as CV_32FC1, copied.
  cv::Mat map_mat(std::size_t index) const {
    return cv::Mat(height, width, CV_32FC1, const_cast<float *>(map(index).data())).clone();
  }
#endif
};

// A region above the pixel threshold; see destseg_defect.
struct Defect : destseg_defect {
  std::vector<destseg_point> contour;
};

// Receives what is reported: a level such as DESTSEG_LOG_WARNING, and a line; see destseg_log_function.
using Log = std::function<void(std::int32_t level, const std::string &line)>;

struct Options {
  std::string backend;  // empty: chosen by the artifact
  std::string device;   // empty: chosen by the artifact
  int threads = 0;
  int parallel = 0;
  std::string precision;  // of OpenVINO only, "fp32" or "bf16"; empty: fp32
  std::string worker_cores;  // of ONNX Runtime on a CPU only, such as "2,3,5"; see destseg_options
  bool spinning = true;      // of ONNX Runtime on a CPU only
  int queue = 0;             // tickets that may be open; 0: 16
  bool tuned = false;        // as `destseg tune` found fastest on this machine; see destseg_options
  Log log;                   // empty: nothing is reported
};

// An open artifact. Threads may share it, see destseg.h. It can be moved and not copied.
class Predictor {
 public:
  // Opens an artifact; bytes are UTF-8.
  explicit Predictor(const std::filesystem::path &path, const Options &options = {})
      : Predictor(detail::utf8(path), options) {}
  explicit Predictor(const std::wstring &path, const Options &options = {})
      : Predictor(detail::utf8(path), options) {}
  explicit Predictor(const wchar_t *path, const Options &options = {})
      : Predictor(std::wstring(path), options) {}
  explicit Predictor(const char *path, const Options &options = {})
      : Predictor(std::string(path), options) {}
  explicit Predictor(const std::string &path, const Options &options = {}) {
    if (destseg_abi_version() != DESTSEG_ABI_VERSION)
      throw Error(DESTSEG_ERROR_ARGUMENT,
                  "libdestseg: ABI " + std::to_string(destseg_abi_version()) +
                      ", this program was compiled for " + std::to_string(DESTSEG_ABI_VERSION) +
                      ". Compile it again with the library's own headers.");
    destseg_options given{};
    given.struct_size = sizeof given;
    given.threads = options.threads;
    given.parallel = options.parallel;
    given.backend = options.backend.empty() ? nullptr : options.backend.c_str();
    given.device = options.device.empty() ? nullptr : options.device.c_str();
    given.precision = options.precision.empty() ? nullptr : options.precision.c_str();
    given.worker_cores = options.worker_cores.empty() ? nullptr : options.worker_cores.c_str();
    given.no_spinning = options.spinning ? 0 : 1;
    given.queue = options.queue;
    given.tuned = options.tuned ? 1 : 0;
    if (options.log) {
      log_ = std::make_unique<Log>(options.log);
      given.log = &report;
      given.log_context = log_.get();
    }
    destseg_predictor *opened = nullptr;
    detail::check(destseg_open(path.c_str(), &given, &opened));
    handle_.reset(opened);
    info_.struct_size = sizeof info_;
    detail::check(destseg_get_info(opened, &info_));
  }

  Predictor(Predictor &&) noexcept = default;
  // The artifact that was open is closed first: until then, it reports to its log.
  Predictor &operator=(Predictor &&other) noexcept {
    handle_ = std::move(other.handle_);
    log_ = std::move(other.log_);
    info_ = other.info_;
    return *this;
  }

  const destseg_info &info() const noexcept { return info_; }
  std::size_t map_pixels() const noexcept {
    return static_cast<std::size_t>(info_.map_height) * static_cast<std::size_t>(info_.map_width);
  }

  // A text of the artifact; see destseg_get_text for the names.
  std::string text(const std::string &name) const {
    std::size_t needed = 0;
    detail::check(destseg_get_text(handle_.get(), name.c_str(), nullptr, 0, &needed));
    std::string value(needed, '\0');
    detail::check(destseg_get_text(handle_.get(), name.c_str(), value.data(), needed, nullptr));
    value.pop_back();
    return value;
  }

  Prediction infer(Span<const destseg_frame> frames) const {
    Prediction prediction = room_for(frames.size());
    infer_into(frames, prediction.results, prediction.maps);
    return prediction;
  }
  Prediction infer(const destseg_frame &single) const {
    return infer(Span<const destseg_frame>(&single, 1));
  }
#ifdef CV_VERSION
  Prediction infer(const cv::Mat &image) const { return infer(frame(image)); }
#endif

  // The same, into the caller's memory, which can be used again. Pass empty maps to skip them.
  void infer_into(Span<const destseg_frame> frames, Span<destseg_result> results,
                  Span<float> maps) const {
    if (results.size() < frames.size())
      throw Error(DESTSEG_ERROR_ARGUMENT,
                  "results: room for " + std::to_string(results.size()) + ", expected " +
                      std::to_string(frames.size()) + ".");
    if (!results.empty()) results[0].struct_size = sizeof(destseg_result);
    detail::check(destseg_infer(handle_.get(), frames.data(), detail::count_of(frames.size()),
                                results.data(), maps.data(), maps.size()));
  }

  // Hands frames over; see destseg_submit. Returns the ticket, or nothing when there is no room in the
  // given time (negative: waits for room).
  std::optional<std::uint64_t> submit(Span<const destseg_frame> frames, int timeout_ms = -1) const {
    std::uint64_t ticket = 0;
    const destseg_status status = destseg_submit(
        handle_.get(), frames.data(), detail::count_of(frames.size()), timeout_ms, &ticket);
    if (status == DESTSEG_ERROR_TIMEOUT) return std::nullopt;
    detail::check(status);
    return ticket;
  }
  std::optional<std::uint64_t> submit(const destseg_frame &single, int timeout_ms = -1) const {
    return submit(Span<const destseg_frame>(&single, 1), timeout_ms);
  }
  // Collects the answers of a ticket of `count` frames; see destseg_wait. Returns nothing when they are not
  // there in the given time (negative: waits for them).
  std::optional<Prediction> wait(std::uint64_t ticket, std::size_t count = 1,
                                 int timeout_ms = -1) const {
    Prediction prediction = room_for(count);
    if (count > 0) prediction.results[0].struct_size = sizeof(destseg_result);
    const destseg_status status =
        destseg_wait(handle_.get(), ticket, timeout_ms, detail::count_of(count),
                     prediction.results.data(), prediction.maps.data(), prediction.maps.size());
    if (status == DESTSEG_ERROR_TIMEOUT) return std::nullopt;
    detail::check(status);
    return prediction;
  }

  // A map at a frame's size: height * width values; see destseg_map_at_frame.
  std::vector<float> map_at_frame(Span<const float> map, int height, int width) const {
    check_map(map);
    const bool sane =  // else the call says what is wrong
        height > 0 && width > 0 && height <= 65536 && width <= 65536;
    std::vector<float> target(
        sane ? static_cast<std::size_t>(height) * static_cast<std::size_t>(width) : 0);
    detail::check(destseg_map_at_frame(handle_.get(), map.data(), height, width, target.data(),
                                       target.size()));
    return target;
  }

  // The defects in the map of a part of a frame, in the whole frame's pixels.
  std::vector<Defect> defects(Span<const float> map, const Region &region,
                              double threshold = -1) const {
    std::vector<Defect> found = defects(map, region.height, region.width, threshold);
    for (Defect &defect : found) {
      defect.x += region.x, defect.y += region.y;
      defect.peak_x += region.x, defect.peak_y += region.y;
      defect.centroid_x += region.x, defect.centroid_y += region.y;
      for (destseg_point &point : defect.contour) point.x += region.x, point.y += region.y;
    }
    return found;
  }

  // The defects in a map, in the pixels of a frame of that size; see destseg_defects.
  std::vector<Defect> defects(Span<const float> map, int height, int width,
                              double threshold = -1) const {
    check_map(map);
    std::vector<destseg_defect> regions(16);
    std::vector<destseg_point> points(1024);
    std::int32_t count = 0, point_count = 0;
    for (bool fits = false; !fits;) {
      regions[0].struct_size = sizeof(destseg_defect);
      detail::check(destseg_defects(handle_.get(), map.data(), height, width, threshold,
                                    regions.data(), detail::count_of(regions.size()), points.data(),
                                    detail::count_of(points.size()), &count, &point_count));
      const auto needed = static_cast<std::size_t>(count);
      const auto needed_points = static_cast<std::size_t>(point_count);
      fits = needed <= regions.size() && needed_points <= points.size();
      if (needed > regions.size()) regions.resize(needed);
      if (needed_points > points.size()) points.resize(needed_points);
    }
    std::vector<Defect> found;
    for (std::size_t i = 0; i < static_cast<std::size_t>(count); ++i) {
      const auto first = points.begin() + regions[i].first_point;
      found.push_back({regions[i], {first, first + regions[i].points}});
    }
    return found;
  }

  // Opens another artifact in this one's place; see destseg_reload. The one call that must not run at
  // the same time as others of this object. Where the maps of the two have other sizes, collect the
  // tickets first.
  void reload(const std::filesystem::path &path) { reload(detail::utf8(path)); }
  void reload(const std::wstring &path) { reload(detail::utf8(path)); }
  void reload(const wchar_t *path) { reload(std::wstring(path)); }
  void reload(const char *path) { reload(std::string(path)); }
  void reload(const std::string &path) {
    detail::check(destseg_reload(handle_.get(), path.c_str()));
    detail::check(destseg_get_info(handle_.get(), &info_));
  }
  void warm_up() const { detail::check(destseg_warm_up(handle_.get())); }
  destseg_times times() const {
    destseg_times times{};
    times.struct_size = sizeof times;
    detail::check(destseg_get_times(handle_.get(), &times));
    return times;
  }

  destseg_result judge(float score) const {
    destseg_result result{};
    result.struct_size = sizeof result;
    detail::check(destseg_judge(handle_.get(), score, &result));
    return result;
  }

  // The handle for calls of the C ABI; this object keeps owning it.
  destseg_predictor *handle() const noexcept { return handle_.get(); }

 private:
  Prediction room_for(std::size_t frames) const {
    Prediction prediction;
    prediction.results.resize(frames);
    prediction.maps.resize(frames * map_pixels());
    prediction.height = info_.map_height;
    prediction.width = info_.map_width;
    return prediction;
  }
  void check_map(Span<const float> map) const {
    if (map.size() < map_pixels())
      throw Error(DESTSEG_ERROR_ARGUMENT, "map: " + std::to_string(map.size()) +
                                              " values, expected " +
                                              std::to_string(map_pixels()) + ".");
  }
  // What the host's function throws would end the process in C.
  static void report(void *log, std::int32_t level, const char *line) noexcept {
    try {
      (*static_cast<const Log *>(log))(level, line);
    } catch (...) {
    }
  }

  struct Closer {
    void operator()(destseg_predictor *handle) const noexcept { destseg_close(handle); }
  };
  std::unique_ptr<Log> log_;  // before the handle, which reports until it is closed
  std::unique_ptr<destseg_predictor, Closer> handle_;
  destseg_info info_{};
};

}  // namespace destseg
#endif
