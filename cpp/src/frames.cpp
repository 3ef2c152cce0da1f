#include "frames.hpp"

#include <cstddef>
#include <cstring>
#include <string>
#include <utility>

#include "error.hpp"

namespace destseg_core {
namespace {

int channels_of(const destseg_frame &frame) { return frame.format == DESTSEG_GREY8 ? 1 : 3; }

std::int64_t packed_stride(const destseg_frame &frame) {
  return std::int64_t{frame.width} * channels_of(frame);
}

const std::uint8_t *row_of(const destseg_frame &frame, int y) {
  const std::int64_t stride = frame.stride == 0 ? packed_stride(frame) : frame.stride;
  return frame.pixels + static_cast<std::ptrdiff_t>(stride * y);
}

// Pixels of any format to RGB.
void to_rgb(const std::uint8_t *source, int format, int count, std::uint8_t *target) {
  if (format == DESTSEG_RGB8) {
    std::memcpy(target, source, static_cast<std::size_t>(count) * 3);
    return;
  }
  const bool grey = format == DESTSEG_GREY8;
  const int step = grey ? 1 : 3, red = grey ? 0 : 2, green = grey ? 0 : 1;
  for (int x = 0; x < count; ++x, source += step, target += 3) {
    target[0] = source[red];
    target[1] = source[green];
    target[2] = source[0];
  }
}

void check_layout(const destseg_frame &frame) {
  if (frame.format < DESTSEG_GREY8 || frame.format > DESTSEG_BGR8)
    throw argument_error("frame: format " + std::to_string(frame.format) +
                         ", expected DESTSEG_GREY8 (1), DESTSEG_RGB8 (2) or DESTSEG_BGR8 (3).");
  if (frame.reserved != 0)
    throw argument_error("frame: reserved " + std::to_string(frame.reserved) +
                         ", expected 0. Zero the struct before setting it.");
  if (frame.pixels == nullptr) throw argument_error("frame: pixels is null. Pass its memory.");
  const std::int64_t least = packed_stride(frame), stride = frame.stride;
  if (stride != 0 && stride < least && stride > -least)
    throw argument_error("frame: a stride of " + std::to_string(stride) +
                         " bytes, expected at least the " + std::to_string(least) +
                         " of a row, or 0 for rows without gaps.");
  constexpr std::int64_t kMaxStride = std::int64_t{1} << 40;
  if (stride > kMaxStride || stride < -kMaxStride)
    throw argument_error("frame: a stride of " + std::to_string(stride) +
                         " bytes, expected at most 2^40.");
}

}  // namespace

void check_frame(const destseg_frame &frame, const Spec &spec) {
  const std::string height = std::to_string(frame.height), width = std::to_string(frame.width);
  if (frame.height < 1 || frame.width < 1)
    throw shape_error("frame: expected uint8 (H, W, 3) or (H, W), got uint8 (" + height + ", " +
                      width + (frame.format == DESTSEG_GREY8 ? ")." : ", 3)."));
  check_layout(frame);
  if (Size{frame.height, frame.width} == spec.input) return;
  if (!spec.any_size())
    throw shape_error("frame: " + width + "x" + height + " pixels, this artifact was exported for " +
                      std::to_string(spec.input.width) + "x" + std::to_string(spec.input.height) +
                      ". Export with --input-size " + height + "x" + width +
                      ", or without it to accept any size.");
  if (frame.height > kMaxSide || frame.width > kMaxSide)
    throw shape_error("frame: " + width + "x" + height + " pixels, expected at most " +
                      std::to_string(kMaxSide) + " on each side.");
}

void FrameFitter::fit(const destseg_frame &frame, std::uint8_t *target) {
  const Size wanted = spec_.input;
  const auto bytes = static_cast<std::size_t>(wanted.width) * 3;
  if (Size{frame.height, frame.width} == wanted) {
    for (int y = 0; y < wanted.height; ++y, target += bytes)
      to_rgb(row_of(frame, y), frame.format, wanted.width, target);
    return;
  }
  first_.size = {frame.height, frame.width};
  first_.channels = channels_of(frame);
  const auto packed = static_cast<std::size_t>(packed_stride(frame));
  first_.bytes.resize(packed * static_cast<std::size_t>(frame.height));
  for (int y = 0; y < frame.height; ++y)
    std::memcpy(first_.bytes.data() + packed * static_cast<std::size_t>(y), row_of(frame, y),
                packed);
  if (frame.width != wanted.width) {  // first along the width, as Pillow up to 12 does
    resize_width(first_, *cache_.get(frame.width, wanted.width), second_);
    std::swap(first_, second_);
  }
  if (frame.height != wanted.height) {
    resize_height(first_, *cache_.get(frame.height, wanted.height), second_);
    std::swap(first_, second_);
  }
  to_rgb(first_.bytes.data(), frame.format, static_cast<int>(wanted.pixels()), target);
}

}  // namespace destseg_core
