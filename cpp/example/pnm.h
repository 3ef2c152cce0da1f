/* pnm.h: binary PGM (P5) and PPM (P6) images of 8 bit, for the examples. Works in C and C++. */
#ifndef PNM_H
#define PNM_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

typedef struct pnm_image {
  uint8_t *pixels; /* to be freed */
  int height;
  int width;
  int channels; /* 1 or 3 */
} pnm_image;

/* A positive number after white space and comments, or 0. */
static int pnm_number(FILE *file) {
  long value = 0;
  int c = fgetc(file);
  while (c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == '#') {
    if (c == '#')
      while (c != '\n' && c != EOF) c = fgetc(file);
    c = fgetc(file);
  }
  for (; c >= '0' && c <= '9'; c = fgetc(file)) {
    value = value * 10 + (c - '0');
    if (value > 65536) return 0;
  }
  return (int)value; /* the one character after the number is gone, as the format wants */
}

/* Returns NULL, or what is wrong with the file. */
static const char *pnm_read(const char *path, pnm_image *image) {
  const char *wrong = NULL;
  size_t size;
  FILE *file = fopen(path, "rb");
  image->pixels = NULL;
  if (file == NULL) return "cannot be opened";
  image->channels = 0;
  if (fgetc(file) == 'P') {
    const int kind = fgetc(file);
    image->channels = kind == '5' ? 1 : kind == '6' ? 3 : 0;
  }
  image->width = pnm_number(file);
  image->height = pnm_number(file);
  if (image->channels == 0 || image->width == 0 || image->height == 0 || pnm_number(file) != 255) {
    fclose(file);
    return "is no binary PGM or PPM of 8 bit";
  }
  size = (size_t)image->width * (size_t)image->height * (size_t)image->channels;
  image->pixels = (uint8_t *)malloc(size);
  if (image->pixels == NULL)
    wrong = "does not fit into memory";
  else if (fread(image->pixels, 1, size, file) != size)
    wrong = "is cut off";
  fclose(file);
  if (wrong != NULL) {
    free(image->pixels);
    image->pixels = NULL;
  }
  return wrong;
}

#endif
