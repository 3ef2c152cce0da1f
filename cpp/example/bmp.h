/* bmp.h: uncompressed BMP images of 8 (grey), 24 and 32 bit, for the examples. Works in C and C++.
 *
 * Most of them are stored bottom up, in BGR, with rows of whole four bytes: destseg_frame takes that as
 * it is, by a negative stride. */
#ifndef BMP_H
#define BMP_H

#include <destseg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static uint32_t bmp_number(const uint8_t *bytes, int count) {
  uint32_t value = 0;
  int i;
  for (i = count - 1; i >= 0; --i) value = value << 8 | bytes[i];
  return value;
}

/* Whether a palette gives each index itself as grey: then the indices are the pixels. */
static int bmp_is_grey(const uint8_t *palette) {
  int i;
  for (i = 0; i < 256; ++i)
    if (palette[4 * i] != i || palette[4 * i + 1] != i || palette[4 * i + 2] != i) return 0;
  return 1;
}

/* A view of the pixels of a file in memory. Returns NULL, or what is wrong with the file. */
static const char *bmp_view(const uint8_t *file, size_t size, destseg_frame *frame) {
  uint32_t offset, header, bits;
  int64_t width, height, stride, rows;
  memset(frame, 0, sizeof *frame);
  if (size < 54 || file[0] != 'B' || file[1] != 'M') return "is no BMP";
  offset = bmp_number(file + 10, 4);
  header = bmp_number(file + 14, 4);
  width = (int32_t)bmp_number(file + 18, 4);
  height = (int32_t)bmp_number(file + 22, 4);
  bits = bmp_number(file + 28, 2);
  rows = height < 0 ? -height : height;
  if (header < 40 || bmp_number(file + 30, 4) != 0 || (bits != 8 && bits != 24 && bits != 32))
    return "is no uncompressed BMP of 8, 24 or 32 bit";
  if (width < 1 || width > 65536 || rows < 1 || rows > 65536) return "is a BMP of a wrong size";
  stride = (width * (int64_t)(bits / 8) + 3) / 4 * 4;
  if (offset > size || (uint64_t)(stride * rows) > size - offset) return "is cut off";
  if (bits == 8 && (header > size || 14 + (size_t)header + 1024 > size ||
                    !bmp_is_grey(file + 14 + header)))
    return "is a BMP of 8 bit with colours or fewer greys; save it with 24 bit";
  frame->struct_size = sizeof *frame;
  frame->format = bits == 8 ? DESTSEG_GREY8 : bits == 24 ? DESTSEG_BGR8 : DESTSEG_BGRA8;
  frame->width = (int32_t)width;
  frame->height = (int32_t)rows;
  frame->stride = height < 0 ? stride : -stride;
  frame->pixels = file + offset + (height < 0 ? 0 : stride * (rows - 1));
  return NULL;
}

#endif
