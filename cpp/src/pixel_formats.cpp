#include "pixel_formats.hpp"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <string>

#include "error.hpp"
#include "spec.hpp"

namespace destseg_core {
namespace {

bool is_mono16(std::int32_t format) { return format >= DESTSEG_MONO10 && format <= DESTSEG_MONO16; }
bool is_bayer(std::int32_t format) {
  return format >= DESTSEG_BAYER_RG8 && format <= DESTSEG_BAYER_BG8;
}
bool is_yuv(std::int32_t format) {
  return format == DESTSEG_YUV422_8 || format == DESTSEG_YUV422_8_UYVY;
}

int bytes_per_pixel(std::int32_t format) {
  if (format == DESTSEG_RGB8 || format == DESTSEG_BGR8) return 3;
  if (format == DESTSEG_RGBA8 || format == DESTSEG_BGRA8) return 4;
  return is_mono16(format) || is_yuv(format) ? 2 : 1;
}

std::int64_t packed_stride(const destseg_frame &frame) {
  return std::int64_t{frame.width} * bytes_per_pixel(frame.format);
}

std::int64_t stride_of(const destseg_frame &frame) {
  return frame.stride == 0 ? packed_stride(frame) : frame.stride;
}

const std::uint8_t *row_of(const destseg_frame &frame, int y) {
  return frame.pixels + static_cast<std::ptrdiff_t>(stride_of(frame) * y);
}

std::uint32_t maximum_of(const destseg_frame &frame) {
  if (frame.maximum != 0) return static_cast<std::uint32_t>(frame.maximum);
  return frame.format == DESTSEG_MONO10 ? 1023 : frame.format == DESTSEG_MONO12 ? 4095 : 65535;
}

// White is `most`; rounded to the nearest grey level.
void unpack_mono16(const std::uint8_t *source, int count, std::uint32_t most, std::uint8_t *target) {
  for (int x = 0; x < count; ++x, source += 2) {
    std::uint16_t value = 0;
    std::memcpy(&value, source, sizeof value);  // which may lie at any address
    target[x] = static_cast<std::uint8_t>((std::min<std::uint32_t>(value, most) * 255 + most / 2) /
                                          most);
  }
}

void unpack_interleaved(const std::uint8_t *source, int count, int step, bool bgr,
                        std::uint8_t *target) {
  const int red = bgr ? 2 : 0, blue = 2 - red;
  for (int x = 0; x < count; ++x, source += step, target += 3) {
    target[0] = source[red];
    target[1] = source[1];
    target[2] = source[blue];
  }
}

std::int64_t plane_of(const destseg_frame &frame) {
  const std::int64_t stride = stride_of(frame);
  return frame.plane != 0 ? frame.plane : (stride < 0 ? -stride : stride) * frame.height;
}

void unpack_planar(const destseg_frame &frame, int y, std::uint8_t *target) {
  const std::int64_t plane = plane_of(frame);
  for (int c = 0; c < 3; ++c) {
    const std::uint8_t *source = row_of(frame, y) + static_cast<std::ptrdiff_t>(plane * c);
    for (int x = 0; x < frame.width; ++x) target[3 * x + c] = source[x];
  }
}

// The pixel beside an edge is the one on its other side, so colours keep their places.
int mirrored(int index, int size) { return index < 0 ? 1 : index >= size ? size - 2 : index; }

std::uint8_t mean(int a, int b) { return static_cast<std::uint8_t>((a + b + 1) >> 1); }
std::uint8_t mean(int a, int b, int c, int d) {
  return static_cast<std::uint8_t>((a + b + c + d + 2) >> 2);
}

// Where red lies in each 2 x 2 pixels.
bool red_is_below(std::int32_t format) {
  return format == DESTSEG_BAYER_GB8 || format == DESTSEG_BAYER_BG8;
}
bool red_is_right(std::int32_t format) {
  return format == DESTSEG_BAYER_GR8 || format == DESTSEG_BAYER_BG8;
}

// The format of what begins x columns and y rows later.
std::int32_t shifted_bayer(std::int32_t format, int x, int y) {
  constexpr std::int32_t kFormats[2][2] = {{DESTSEG_BAYER_RG8, DESTSEG_BAYER_GR8},
                                           {DESTSEG_BAYER_GB8, DESTSEG_BAYER_BG8}};
  return kFormats[red_is_below(format) != (y % 2 == 1)][red_is_right(format) != (x % 2 == 1)];
}

// Each missing colour is the mean of the nearest pixels that have it.
void unpack_bayer(const destseg_frame &frame, int y, std::uint8_t *target) {
  const std::uint8_t *above = row_of(frame, mirrored(y - 1, frame.height));
  const std::uint8_t *here = row_of(frame, y);
  const std::uint8_t *below = row_of(frame, mirrored(y + 1, frame.height));
  const bool second_row = red_is_below(frame.format), second_column = red_is_right(frame.format);
  const bool red_row = (y % 2 == 1) == second_row;
  for (int x = 0; x < frame.width; ++x, target += 3) {
    const int left = mirrored(x - 1, frame.width), right = mirrored(x + 1, frame.width);
    const bool red_column = (x % 2 == 1) == second_column;
    const int own = red_row ? 0 : 2;  // the colour of this row beside green
    if (red_row == red_column) {
      target[own] = here[x];
      target[1] = mean(above[x], below[x], here[left], here[right]);
      target[2 - own] = mean(above[left], above[right], below[left], below[right]);
    } else {
      target[own] = mean(here[left], here[right]);
      target[1] = here[x];
      target[2 - own] = mean(above[x], below[x]);
    }
  }
}

std::uint8_t clamped(int value) { return static_cast<std::uint8_t>(std::clamp(value, 0, 255)); }

// BT.601 from 0 to 255, in units of 2^-16; >> rounds down, for negative numbers, too.
void unpack_yuv(const std::uint8_t *source, int count, bool uyvy, std::uint8_t *target) {
  const int luma = uyvy ? 1 : 0, chroma = 1 - luma;
  for (int x = 0; x < count; x += 2, source += 4) {
    const int u = source[chroma] - 128, v = source[chroma + 2] - 128;
    const int red = (91881 * v + 32768) >> 16;
    const int green = (22554 * u + 46802 * v + 32768) >> 16;
    const int blue = (116130 * u + 32768) >> 16;
    for (int i = 0; i < 2; ++i, target += 3) {
      const int y = source[luma + 2 * i];
      target[0] = clamped(y + red);
      target[1] = clamped(y - green);
      target[2] = clamped(y + blue);
    }
  }
}

void check_stride(const destseg_frame &frame) {
  const std::int64_t least = packed_stride(frame), stride = frame.stride;
  if (stride != 0 && stride < least && stride > -least)
    throw argument_error("frame: a stride of " + std::to_string(stride) +
                         " bytes, expected at least the " + std::to_string(least) +
                         " of a row, or 0 for rows without gaps.");
  constexpr std::int64_t kMax = std::int64_t{1} << 40;
  for (const std::int64_t value : {stride, frame.plane})
    if (value > kMax || value < -kMax)
      throw argument_error(std::string("frame: a ") + (value == stride ? "stride" : "plane") +
                           " of " + std::to_string(value) + " bytes, expected at most 2^40.");
}

void check_extras(const destseg_frame &frame) {
  if (frame.reserved != 0)
    throw argument_error("frame: reserved " + std::to_string(frame.reserved) +
                         ", expected 0. Zero the struct before setting it.");
  if (frame.maximum < 0 || frame.maximum > 65535 ||
      (frame.maximum != 0 && !is_mono16(frame.format)))
    throw argument_error("frame: maximum " + std::to_string(frame.maximum) + " for format " +
                         std::to_string(frame.format) +
                         ", expected 0, or 1 to 65535 for MONO10, MONO12 and MONO16.");
  if (frame.plane != 0 && frame.format != DESTSEG_RGB8_PLANAR)
    throw argument_error("frame: plane " + std::to_string(frame.plane) + " for format " +
                         std::to_string(frame.format) + ", expected 0, or RGB8_PLANAR.");
}

}  // namespace

int channels_of(std::int32_t format) {
  return format == DESTSEG_GREY8 || is_mono16(format) ? 1 : 3;
}

void check_sides(int height, int width) {
  if (height < 1 || width < 1 || height > kMaxSide || width > kMaxSide)
    throw shape_error("frame: " + std::to_string(width) + "x" + std::to_string(height) +
                      " pixels, expected 1 to " + std::to_string(kMaxSide) + " on each side.");
}

// Sides and strides are limited before anything is computed from them.
void check_layout(const destseg_frame &frame) {
  if (frame.format < DESTSEG_GREY8 || frame.format > DESTSEG_YUV422_8_UYVY)
    throw argument_error("frame: format " + std::to_string(frame.format) +
                         ", expected DESTSEG_GREY8 (1) to DESTSEG_YUV422_8_UYVY (15).");
  check_extras(frame);
  if (frame.pixels == nullptr) throw argument_error("frame: pixels is null. Pass its memory.");
  check_sides(frame.height, frame.width);
  check_stride(frame);
  const std::string size = std::to_string(frame.width) + "x" + std::to_string(frame.height);
  if (is_bayer(frame.format) && (frame.height < 2 || frame.width < 2))
    throw shape_error("frame: " + size + " pixels of a Bayer format, expected at least 2x2.");
  if (is_yuv(frame.format) && frame.width % 2 != 0)
    throw shape_error("frame: " + size + " pixels of YUV422, expected an even width.");
}

destseg_frame cropped(const destseg_frame &frame, int x, int y, int width, int height) {
  check_layout(frame);
  if (x < 0 || y < 0 || width < 1 || height < 1 || width > frame.width - x ||
      height > frame.height - y)
    throw shape_error("part: " + std::to_string(width) + "x" + std::to_string(height) +
                      " pixels at (" + std::to_string(x) + ", " + std::to_string(y) +
                      "), expected it inside of the frame of " + std::to_string(frame.width) + "x" +
                      std::to_string(frame.height) + ".");
  if (is_yuv(frame.format) && x % 2 != 0)
    throw shape_error("part: x " + std::to_string(x) + " in YUV422, expected an even number.");
  destseg_frame part = frame;
  if (frame.format == DESTSEG_RGB8_PLANAR) part.plane = plane_of(frame);
  if (is_bayer(frame.format)) part.format = shifted_bayer(frame.format, x, y);
  part.stride = stride_of(frame);
  part.pixels = row_of(frame, y) + static_cast<std::ptrdiff_t>(x) * bytes_per_pixel(frame.format);
  part.width = width, part.height = height;
  check_layout(part);  // a Bayer or YUV part may be too small, or of an odd width
  return part;
}

void unpack_row(const destseg_frame &frame, int y, std::uint8_t *target) {
  const std::uint8_t *source = row_of(frame, y);
  switch (frame.format) {
    case DESTSEG_GREY8:
    case DESTSEG_RGB8:
      std::memcpy(target, source, static_cast<std::size_t>(packed_stride(frame)));
      break;
    case DESTSEG_BGR8:
    case DESTSEG_RGBA8:
    case DESTSEG_BGRA8:
      unpack_interleaved(source, frame.width, bytes_per_pixel(frame.format),
                         frame.format != DESTSEG_RGBA8, target);
      break;
    case DESTSEG_RGB8_PLANAR: unpack_planar(frame, y, target); break;
    case DESTSEG_YUV422_8:
    case DESTSEG_YUV422_8_UYVY:
      unpack_yuv(source, frame.width, frame.format == DESTSEG_YUV422_8_UYVY, target);
      break;
    default:
      if (is_mono16(frame.format))
        unpack_mono16(source, frame.width, maximum_of(frame), target);
      else
        unpack_bayer(frame, y, target);
  }
}

}  // namespace destseg_core
