/* inspect.c: score one image and write its anomaly map.
 *
 *     inspect_one ARTIFACT IMAGE MAP.pgm [BACKEND]
 *
 * IMAGE is a BMP, PNG, PGM or PPM.
 *
 * Prints the score and the verdict, OK or NG, and for NG a line for each defect. Exits with 0 for OK,
 * 2 for NG, 3 if the model has no threshold, 1 for an error. */
#include <destseg.h>
#include <stdio.h>
#include <stdlib.h>

#include "arguments.h"
#include "image.h"

static int fail(const char *what, const char *why) {
  fprintf(stderr, "Error: %s%s%s\n", what, what[0] ? ": " : "", why);
  return 1;
}

/* The map as 8-bit grey: 0 is normal, 255 is defective. */
static int write_map(const char *path, const float *map, int height, int width) {
  const size_t count = (size_t)height * (size_t)width;
  size_t i;
  int failed;
  FILE *file = utf8_fopen(path, "wb");
  if (file == NULL) return fail(path, "cannot be written");
  fprintf(file, "P5\n%d %d\n255\n", width, height);
  for (i = 0; i < count; ++i) fputc((int)(map[i] * 255.0f + 0.5f), file);
  failed = ferror(file);
  failed = fclose(file) != 0 || failed;
  return failed ? fail(path, "cannot be written") : 0;
}

/* The worst defects of a frame, in its pixels. */
static int print_defects(destseg_predictor *predictor, const float *map, const destseg_frame *frame) {
  destseg_defect defects[16] = {{0}};
  int32_t count, i;
  defects[0].struct_size = sizeof defects[0];
  if (destseg_defects(predictor, map, frame->height, frame->width, -1.0, defects, 16, NULL, 0, &count,
                      NULL) != DESTSEG_OK)
    return fail("", destseg_last_error());
  for (i = 0; i < count && i < 16; ++i)
    printf("defect x %d y %d width %d height %d area %lld peak %.9g\n", (int)defects[i].x,
           (int)defects[i].y, (int)defects[i].width, (int)defects[i].height,
           (long long)defects[i].area, (double)defects[i].peak);
  return 0;
}

static int inspect(destseg_predictor *predictor, const destseg_frame *frame, const char *map_path) {
  destseg_info info = {0};
  destseg_result result = {0};
  float *map;
  size_t floats;
  int status = 1;

  info.struct_size = sizeof info;
  if (destseg_get_info(predictor, &info) != DESTSEG_OK) return fail("", destseg_last_error());
  floats = (size_t)info.map_height * (size_t)info.map_width;
  map = (float *)malloc(floats * sizeof *map);
  if (map == NULL) return fail("map", "does not fit into memory");

  result.struct_size = sizeof result;
  if (destseg_infer(predictor, frame, 1, &result, map, floats) != DESTSEG_OK)
    fail("", destseg_last_error());
  else if (write_map(map_path, map, info.map_height, info.map_width) == 0) {
    printf("score %.9g normalized %.9g %s\n", (double)result.score,
           (double)result.normalized_score,
           result.verdict == DESTSEG_ANOMALOUS ? "NG"
           : result.verdict == DESTSEG_NORMAL  ? "OK"
                                               : "undecided");
    status = result.verdict == DESTSEG_NORMAL ? 0 : result.verdict == DESTSEG_ANOMALOUS ? 2 : 3;
    if (status == 2 && print_defects(predictor, map, frame) != 0) status = 1;
  }
  free(map);
  return status;
}

int main(int argc, char **argv) {
  destseg_options options = {0};
  destseg_predictor *predictor = NULL;
  image read;
  const char *wrong;
  int status;

  argv = utf8_arguments(&argc, argv);
  if (argv == NULL || argc < 4 || argc > 5) {
    fprintf(stderr, "Usage: inspect_one ARTIFACT IMAGE MAP.pgm [BACKEND]\n");
    return 1;
  }
  if (destseg_abi_version() != DESTSEG_ABI_VERSION)
    return fail("libdestseg", "has another ABI than destseg.h; install both anew");
  options.struct_size = sizeof options;
  options.backend = argc == 5 ? argv[4] : NULL;
  wrong = image_read(argv[2], &read);
  if (wrong != NULL) return fail(argv[2], wrong);
  if (destseg_open(argv[1], &options, &predictor) == DESTSEG_OK)
    status = inspect(predictor, &read.frame, argv[3]);
  else
    status = fail("", destseg_last_error());
  destseg_close(predictor);
  free(read.memory);
  return status;
}
