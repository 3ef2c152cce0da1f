// What cameras give, brought to RGB or grey of 8 bit in whole numbers: the same bits as
// destseg_deploy/data/pixel_formats.py, which gives the rules.
#pragma once

#include <cstdint>

#include "destseg.h"

namespace destseg_core {

// Channels after unpacking: 1 for grey and mono, else 3. The format must be a known one.
int channels_of(std::int32_t format);

// Throws Error (shape) for a frame without pixels, or with more than kMaxSide on a side.
void check_sides(int height, int width);

// Refuses a format, layout or size that no frame has. Throws Error: argument, or shape for a size that
// the format does not have.
void check_layout(const destseg_frame &frame);

// Bring row y of a checked frame to channels_of() * width bytes.
void unpack_row(const destseg_frame &frame, int y, std::uint8_t *target);

// A view of a part of a frame; see destseg_crop. Throws as check_layout does, and Error (shape) for a part
// that does not lie inside.
destseg_frame cropped(const destseg_frame &frame, int x, int y, int width, int height);

}  // namespace destseg_core
