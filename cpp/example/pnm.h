/* pnm.h: binary PGM (P5) and PPM (P6) images of 8 bit, for the examples. Works in C and C++. */
#ifndef PNM_H
#define PNM_H

#include <destseg.h>
#include <stdint.h>
#include <string.h>

/* A positive number after white space and comments, or 0. */
static int pnm_number(const uint8_t *file, size_t size, size_t *at) {
  long value = 0;
  while (*at < size && (file[*at] == '#' || file[*at] <= ' '))
    if (file[(*at)++] == '#')
      while (*at < size && file[*at] != '\n') ++*at;
  for (; *at < size && file[*at] >= '0' && file[*at] <= '9'; ++*at) {
    value = value * 10 + (file[*at] - '0');
    if (value > 65536) return 0;
  }
  return (int)value;
}

/* A view of the pixels of a file in memory. Returns NULL, or what is wrong with the file. */
static const char *pnm_view(const uint8_t *file, size_t size, destseg_frame *frame) {
  size_t at = 2;
  int channels;
  memset(frame, 0, sizeof *frame);
  if (size < 3 || file[0] != 'P' || (file[1] != '5' && file[1] != '6')) return "is no PGM or PPM";
  channels = file[1] == '5' ? 1 : 3;
  frame->width = pnm_number(file, size, &at);
  frame->height = pnm_number(file, size, &at);
  if (frame->width == 0 || frame->height == 0 || pnm_number(file, size, &at) != 255)
    return "is no binary PGM or PPM of 8 bit";
  ++at; /* the white space after the last number */
  if (at > size || (uint64_t)frame->width * (uint64_t)frame->height * (uint64_t)channels > size - at)
    return "is cut off";
  frame->struct_size = sizeof *frame;
  frame->format = channels == 1 ? DESTSEG_GREY8 : DESTSEG_RGB8;
  frame->pixels = file + at;
  return NULL;
}

#endif
