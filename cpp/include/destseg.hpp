// destseg.hpp: destseg.h for C++17. Header-only; adds ownership, exceptions and views, no state.
//
//     destseg::Predictor predictor("cable-fp32.onnx");
//     destseg::Prediction prediction = predictor.infer(destseg::rgb(pixels, height, width));
//     if (prediction.results[0].verdict == DESTSEG_ANOMALOUS) reject();
//
// Include OpenCV's core before this file and cv::Mat is taken, too, as OpenCV keeps it (BGR).
#ifndef DESTSEG_HPP
#define DESTSEG_HPP

#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "destseg.h"

namespace destseg {

// What a call of the C ABI came to, when it was not DESTSEG_OK. what() says what was wrong, what
// was expected and what to do.
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

namespace detail {

inline void check(destseg_status code) {
  if (code == DESTSEG_OK) return;
  const std::string message = destseg_last_error();
  switch (code) {
    case DESTSEG_ERROR_SPEC: throw SpecError(code, message);
    case DESTSEG_ERROR_SHAPE: throw ShapeError(code, message);
    case DESTSEG_ERROR_BACKEND: throw BackendError(code, message);
    case DESTSEG_ERROR_MEMORY: throw std::bad_alloc();
    default: throw Error(code, message);
  }
}

inline std::int32_t count_of(std::size_t size) {
  if (size > static_cast<std::size_t>((std::numeric_limits<std::int32_t>::max)()))
    throw Error(DESTSEG_ERROR_ARGUMENT, "frames: more than 2^31 - 1. Pass them in turn.");
  return static_cast<std::int32_t>(size);
}

}  // namespace detail

// A view of values that lie one after the other, as std::span of C++20.
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

struct Options {
  std::string backend;  // empty: chosen by the artifact
  std::string device;   // empty: chosen by the artifact
  int threads = 0;
  int parallel = 0;
  std::string precision;  // of OpenVINO only, "fp32" or "bf16"; empty: fp32
};

// An open artifact. May be shared by threads as destseg.h says; moved, not copied.
class Predictor {
 public:
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
    destseg_predictor *opened = nullptr;
    detail::check(destseg_open(path.c_str(), &given, &opened));
    handle_.reset(opened);
    info_.struct_size = sizeof info_;
    detail::check(destseg_get_info(opened, &info_));
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
    Prediction prediction;
    prediction.results.resize(frames.size());
    prediction.maps.resize(frames.size() * map_pixels());
    prediction.height = info_.map_height;
    prediction.width = info_.map_width;
    infer_into(frames, prediction.results, prediction.maps);
    return prediction;
  }
  Prediction infer(const destseg_frame &single) const {
    return infer(Span<const destseg_frame>(&single, 1));
  }
#ifdef CV_VERSION
  Prediction infer(const cv::Mat &image) const { return infer(frame(image)); }
#endif

  // The same into the caller's memory, which may be used again; empty maps are not written.
  void infer_into(Span<const destseg_frame> frames, Span<destseg_result> results,
                  Span<float> maps) const {
    if (results.size() < frames.size())
      throw Error(DESTSEG_ERROR_ARGUMENT,
                  "results: room for " + std::to_string(results.size()) + ", expected " +
                      std::to_string(frames.size()) + ".");
    detail::check(destseg_infer(handle_.get(), frames.data(), detail::count_of(frames.size()),
                                results.data(), maps.data(), maps.size()));
  }

  destseg_result judge(float score) const {
    destseg_result result{};
    detail::check(destseg_judge(handle_.get(), score, &result));
    return result;
  }

  // For calls of the C ABI; stays owned by this object.
  destseg_predictor *handle() const noexcept { return handle_.get(); }

 private:
  struct Closer {
    void operator()(destseg_predictor *handle) const noexcept { destseg_close(handle); }
  };
  std::unique_ptr<destseg_predictor, Closer> handle_;
  destseg_info info_{};
};

}  // namespace destseg
#endif
