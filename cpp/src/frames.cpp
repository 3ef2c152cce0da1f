#include "frames.hpp"

#include <algorithm>
#include <cstddef>
#include <string>
#include <utility>

#include "error.hpp"
#include "pixel_formats.hpp"

namespace destseg_core {
namespace {

// Grey to RGB.
void spread(const std::uint8_t *source, std::size_t count, std::uint8_t *target) {
  for (std::size_t x = 0; x < count; ++x, target += 3) target[0] = target[1] = target[2] = source[x];
}

}  // namespace

void check_frame(const destseg_frame &frame, const Spec &spec) {
  const std::string height = std::to_string(frame.height), width = std::to_string(frame.width);
  if (frame.height < 1 || frame.width < 1)
    throw shape_error("frame: expected uint8 (H, W, 3) or (H, W), got uint8 (" + height + ", " +
                      width + (channels_of(frame.format) == 1 ? ")." : ", 3)."));
  check_layout(frame);
  if (Size{frame.height, frame.width} == spec.input) return;
  if (!spec.any_size())
    throw shape_error("frame: " + width + "x" + height + " pixels, this artifact was exported for " +
                      std::to_string(spec.input.width) + "x" + std::to_string(spec.input.height) +
                      ". Export with --input-size " + height + "x" + width +
                      ", or without it to accept any size.");
}

void FrameFitter::unpack(const destseg_frame &frame) {
  first_.size = {frame.height, frame.width};
  first_.channels = channels_of(frame.format);
  const std::size_t bytes =
      static_cast<std::size_t>(frame.width) * static_cast<std::size_t>(first_.channels);
  first_.bytes.resize(bytes * static_cast<std::size_t>(frame.height));
  for (int y = 0; y < frame.height; ++y)
    unpack_row(frame, y, first_.bytes.data() + bytes * static_cast<std::size_t>(y));
}

void FrameFitter::fit(const destseg_frame &frame, std::uint8_t *target) {
  const Size wanted = spec_.input;
  const bool same = Size{frame.height, frame.width} == wanted;
  if (same && channels_of(frame.format) == 3) {
    for (int y = 0; y < wanted.height; ++y, target += static_cast<std::size_t>(wanted.width) * 3)
      unpack_row(frame, y, target);
    return;
  }
  unpack(frame);
  if (frame.width != wanted.width) {  // first along the width, as Pillow up to 12 does
    resize_width(first_, *cache_.get(frame.width, wanted.width), second_);
    std::swap(first_, second_);
  }
  if (frame.height != wanted.height) {
    resize_height(first_, *cache_.get(frame.height, wanted.height), second_);
    std::swap(first_, second_);
  }
  if (first_.channels == 1)
    spread(first_.bytes.data(), wanted.pixels(), target);
  else
    std::copy(first_.bytes.begin(), first_.bytes.end(), target);
}

}  // namespace destseg_core
