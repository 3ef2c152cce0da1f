/* image.h: BMP, PNG, PGM and PPM images as frames, for the examples. Works in C and C++. */
#ifndef IMAGE_H
#define IMAGE_H

#include <destseg.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "arguments.h"
#include "bmp.h"
#include "png.h"
#include "pnm.h"

typedef struct image {
  destseg_frame frame;
  uint8_t *memory; /* to be freed */
} image;

/* All bytes of a file, to be freed; NULL where it cannot be read. */
static uint8_t *image_bytes(const char *path, size_t *size) {
  uint8_t *bytes = NULL;
  size_t room = 0, got = 1;
  FILE *file = utf8_fopen(path, "rb");
  *size = 0;
  if (file == NULL) return NULL;
  while (got > 0) {
    if (*size == room) {
      uint8_t *larger = (uint8_t *)realloc(bytes, room = 2 * room + 65536);
      if (larger == NULL) break;
      bytes = larger;
    }
    got = fread(bytes + *size, 1, room - *size, file);
    *size += got;
  }
  if (got > 0 || ferror(file)) {
    free(bytes);
    bytes = NULL;
  }
  fclose(file);
  return bytes;
}

/* Colour becomes RGB of 8 bit, grey stays grey; transparency is dropped. */
static const char *image_of_png(const uint8_t *file, size_t size, image *read) {
  int width, height, channels;
  uint8_t *pixels;
  if (size > INT_MAX || !stbi_info_from_memory(file, (int)size, &width, &height, &channels))
    return "is no PNG";
  if (stbi_is_16_bit_from_memory(file, (int)size)) /* a file does not say how many a camera has */
    return "has 16 bits a pixel; save it with 8, or pass grey frames as DESTSEG_MONO10, 12 or 16";
  channels = channels < 3 ? 1 : 3;
  pixels = stbi_load_from_memory(file, (int)size, &width, &height, NULL, channels);
  if (pixels == NULL) return "is a damaged PNG";
  read->memory = pixels;
  read->frame.struct_size = sizeof read->frame;
  read->frame.format = channels == 1 ? DESTSEG_GREY8 : DESTSEG_RGB8;
  read->frame.pixels = pixels;
  read->frame.height = height;
  read->frame.width = width;
  return NULL;
}

/* Returns NULL, or what is wrong with the file. The kind is known by its first bytes. */
static const char *image_read(const char *path, image *read) {
  const char *wrong;
  size_t size;
  uint8_t *file = image_bytes(path, &size);
  memset(read, 0, sizeof *read);
  if (file == NULL) return "cannot be read";
  if (size > 2 && file[0] == 'P' && (file[1] == '5' || file[1] == '6')) {
    wrong = pnm_view(file, size, &read->frame);
    read->memory = file;
  } else if (size > 2 && file[0] == 'B' && file[1] == 'M') {
    wrong = bmp_view(file, size, &read->frame);
    read->memory = file;
  } else if (size > 8 && memcmp(file, "\x89PNG\r\n\x1a\n", 8) == 0) {
    wrong = image_of_png(file, size, read);
    free(file);
  } else {
    wrong = "is no BMP, PNG, PGM or PPM";
    free(file);
  }
  if (wrong != NULL) {
    free(read->memory);
    read->memory = NULL;
  }
  return wrong;
}

#endif
