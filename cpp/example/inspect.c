/* inspect.c: score one image and write its anomaly map.
 *
 *     inspect_one ARTIFACT IMAGE.ppm MAP.pgm [BACKEND]
 *
 * Prints the score, and exits with 0 for a normal image, 2 for an anomalous one, 1 for an error. */
#include <destseg.h>
#include <stdio.h>
#include <stdlib.h>

#include "pnm.h"

static int fail(const char *what, const char *why) {
  fprintf(stderr, "Error: %s%s%s\n", what, what[0] ? ": " : "", why);
  return 1;
}

/* The map as 8-bit grey: 0 is normal, 255 a defect. */
static int write_map(const char *path, const float *map, int height, int width) {
  const size_t count = (size_t)height * (size_t)width;
  size_t i;
  int failed;
  FILE *file = fopen(path, "wb");
  if (file == NULL) return fail(path, "cannot be written");
  fprintf(file, "P5\n%d %d\n255\n", width, height);
  for (i = 0; i < count; ++i) fputc((int)(map[i] * 255.0f + 0.5f), file);
  failed = ferror(file);
  failed = fclose(file) != 0 || failed;
  return failed ? fail(path, "cannot be written") : 0;
}

static int inspect(destseg_predictor *predictor, const pnm_image *image, const char *map_path) {
  destseg_info info = {0};
  destseg_frame frame = {0};
  destseg_result result;
  float *map;
  size_t floats;
  int status = 1;

  info.struct_size = sizeof info;
  if (destseg_get_info(predictor, &info) != DESTSEG_OK) return fail("", destseg_last_error());
  floats = (size_t)info.map_height * (size_t)info.map_width;
  map = (float *)malloc(floats * sizeof *map);
  if (map == NULL) return fail("map", "does not fit into memory");

  frame.pixels = image->pixels;
  frame.height = image->height;
  frame.width = image->width;
  frame.format = image->channels == 1 ? DESTSEG_GREY8 : DESTSEG_RGB8;
  if (destseg_infer(predictor, &frame, 1, &result, map, floats) != DESTSEG_OK)
    fail("", destseg_last_error());
  else if (write_map(map_path, map, info.map_height, info.map_width) == 0) {
    printf("score %.9g normalized %.9g %s\n", (double)result.score,
           (double)result.normalized_score,
           result.verdict == DESTSEG_ANOMALOUS ? "anomalous"
           : result.verdict == DESTSEG_NORMAL  ? "normal"
                                               : "undecided");
    status = result.verdict == DESTSEG_ANOMALOUS ? 2 : 0;
  }
  free(map);
  return status;
}

int main(int argc, char **argv) {
  destseg_options options = {0};
  destseg_predictor *predictor = NULL;
  pnm_image image;
  const char *wrong;
  int status;

  if (argc < 4 || argc > 5) {
    fprintf(stderr, "Usage: inspect_one ARTIFACT IMAGE.ppm MAP.pgm [BACKEND]\n");
    return 1;
  }
  if (destseg_abi_version() != DESTSEG_ABI_VERSION)
    return fail("libdestseg", "has another ABI than destseg.h; install both anew");
  options.struct_size = sizeof options;
  options.backend = argc == 5 ? argv[4] : NULL;
  wrong = pnm_read(argv[2], &image);
  if (wrong != NULL) return fail(argv[2], wrong);
  if (destseg_open(argv[1], &options, &predictor) == DESTSEG_OK)
    status = inspect(predictor, &image, argv[3]);
  else
    status = fail("", destseg_last_error());
  destseg_close(predictor);
  free(image.pixels);
  return status;
}
