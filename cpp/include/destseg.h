/*
 * destseg.h: load what destseg-export wrote, and get a score and a map for each frame.
 *
 * A C ABI for C, C++, C#, LabVIEW and whatever else calls shared libraries. C++ hosts may like
 * destseg.hpp better, which wraps this file and adds nothing to it.
 *
 *     destseg_predictor *predictor;
 *     if (destseg_open("cable-fp32.onnx", NULL, &predictor) != DESTSEG_OK)
 *         fprintf(stderr, "%s\n", destseg_last_error());
 *
 * Rules that hold for every function:
 *
 * - Errors are returned as a status; destseg_last_error() then says in one line what was wrong,
 *   what was expected and what to do. Nothing is thrown across this border, nothing is printed.
 * - All memory that passes it belongs to the caller, before and after, except texts, which are
 *   owned by the library for as long as is said at the function. Nothing is kept of a frame after
 *   the call. A call that fails may have written part of its results.
 * - Handles are numbers in disguise, never reused: one that was closed, or never opened, is
 *   refused with DESTSEG_ERROR_BACKEND instead of being followed into freed memory.
 * - Threads: every function may be called from any thread at any time, on one handle and on many.
 *   Calls of destseg_infer on one handle run at once, up to destseg_options.parallel of them;
 *   further ones wait. destseg_close during a call lets that call finish.
 * - Do not call from a signal handler, from DllMain, or in a child after fork without exec.
 * - Paths and texts are UTF-8, on Windows too.
 *
 * Structs with a struct_size only ever grow at their end, and the library reads and writes no more
 * of one than its struct_size says; so a host that was compiled with an older header keeps working
 * for as long as destseg_abi_version() stays the same. A host with a newer header works, too, unless
 * it sets an option that the library does not know, which is refused. The other structs do not
 * change.
 */
#ifndef DESTSEG_H
#define DESTSEG_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#if defined(DESTSEG_BUILDING)
#define DESTSEG_API __declspec(dllexport)
#else
#define DESTSEG_API __declspec(dllimport)
#endif
#elif defined(__GNUC__)
#define DESTSEG_API __attribute__((visibility("default")))
#else
#define DESTSEG_API
#endif

/* Changes when something here changes that a compiled host would trip over. */
#define DESTSEG_ABI_VERSION 1

#ifdef __cplusplus
#define DESTSEG_NOEXCEPT noexcept
extern "C" {
#else
#define DESTSEG_NOEXCEPT
#endif

/* What a call came to. The middle three are the Python runtime's SpecError, ShapeError and
 * BackendError, with its wording. */
typedef int32_t destseg_status;
#define DESTSEG_OK 0
#define DESTSEG_ERROR_SPEC 1     /* the .json is missing, unreadable, or of another file */
#define DESTSEG_ERROR_SHAPE 2    /* a frame of a size or format that the artifact refuses */
#define DESTSEG_ERROR_BACKEND 3  /* a runtime, device or artifact that is not there or refuses */
#define DESTSEG_ERROR_ARGUMENT 4 /* a null pointer, a short buffer, an unknown constant */
#define DESTSEG_ERROR_MEMORY 5   /* not enough memory */
#define DESTSEG_ERROR_INTERNAL 6 /* a bug in this library; please report it with its text */

/* An open artifact. */
typedef struct destseg_predictor destseg_predictor;

/* How an artifact is opened. Zero everything and set struct_size; zeros mean the defaults. */
typedef struct destseg_options {
  uint32_t struct_size; /* sizeof(destseg_options) */
  int32_t threads;      /* threads within one inference on a CPU; 0 leaves it to the back end */
  int32_t parallel;     /* calls on this handle that run at once, 1 to 64; 0 means 2 */
  uint32_t reserved;    /* 0, or the call fails */
  const char *backend;  /* "onnxruntime", "openvino" or "tensorrt"; NULL takes, for .onnx, the
                           first of these that was built in, and for .engine TensorRT */
  const char *device;   /* "cpu", "cuda" or "cuda:<index>"; NULL means "cpu" for .onnx and "cuda"
                           for .engine. What was asked for runs, or the call fails */
  const char *precision; /* for OpenVINO only: "fp32", or "bf16" where the CPU computes in it: about
                           twice as fast, with scores that differ by up to a few hundredths, so set
                           the threshold in the precision that runs. NULL means "fp32". Layers that
                           the artifact holds in INT8 run in INT8 either way */
} destseg_options;

/* What an artifact takes and gives. */
typedef struct destseg_info {
  uint32_t struct_size;    /* sizeof(destseg_info), set by the caller */
  int32_t any_size;        /* 1: frames of any size are taken and resized here, with the kernel of
                              the training. 0: frames of height x width only */
  int32_t height;          /* of the input, in pixels */
  int32_t width;
  int32_t network_height;  /* at which the network sees the image */
  int32_t network_width;
  int32_t map_height;      /* of the returned map */
  int32_t map_width;
  int32_t batch_min;       /* frames in one inference; calls may pass any number */
  int32_t batch_opt;
  int32_t batch_max;
  int32_t top_k;           /* pixels whose mean is the score */
  int32_t has_threshold;   /* 0: no threshold was set yet; see destseg-threshold */
  int32_t threshold_images; /* images that the threshold's rule looked at; 0 when set by hand */
  double threshold_score;  /* an image is anomalous when its score is greater; NaN without one */
  double threshold_pixel;  /* a pixel is drawn as defective when its value is greater */
} destseg_info;

/* Formats of pixels, 8 bit per channel, channels interleaved. */
#define DESTSEG_GREY8 1
#define DESTSEG_RGB8 2
#define DESTSEG_BGR8 3

/* A frame in the caller's memory. */
typedef struct destseg_frame {
  const uint8_t *pixels; /* the top left pixel */
  int64_t stride;        /* bytes from a row to the one below it; 0 when rows follow each other
                            without a gap; negative for images stored bottom up */
  int32_t height;
  int32_t width;
  int32_t format;        /* DESTSEG_GREY8, DESTSEG_RGB8 or DESTSEG_BGR8 */
  uint32_t reserved;     /* 0, or the call fails */
} destseg_frame;

/* Verdicts. */
#define DESTSEG_UNDECIDED (-1) /* the spec has no threshold yet */
#define DESTSEG_NORMAL 0
#define DESTSEG_ANOMALOUS 1

/* The answer for a frame. */
typedef struct destseg_result {
  float score;            /* raw, in [0, 1] */
  float normalized_score; /* in [0, 1], the threshold at 0.5; NaN without a threshold */
  int32_t verdict;        /* anomalous when score > threshold */
} destseg_result;

/* The DESTSEG_ABI_VERSION that the library was compiled with. Compare it before anything else. */
DESTSEG_API uint32_t destseg_abi_version(void) DESTSEG_NOEXCEPT;

/* Version of the library, such as "0.1.0". Never freed. */
DESTSEG_API const char *destseg_version(void) DESTSEG_NOEXCEPT;

/* Names of the back ends that were built in, separated by a comma and a space. Never freed. */
DESTSEG_API const char *destseg_backends(void) DESTSEG_NOEXCEPT;

/* What went wrong in the calling thread's last call that failed; "" if none did. Valid until that
 * thread's next call that fails. In LabVIEW, whose threads change between calls, ask for it in the
 * same subroutine VI, or call this library in the UI thread. */
DESTSEG_API const char *destseg_last_error(void) DESTSEG_NOEXCEPT;

/* Open an artifact, with its .json beside it (a.json for a.onnx, a.engine.json for a.engine).
 * The spec is validated before the artifact is touched, and the artifact's SHA-256 compared before a
 * back end reads it.
 *
 *   path       .onnx or .engine
 *   options    NULL for the defaults
 *   predictor  receives the handle, or NULL when the call fails; close it with destseg_close */
DESTSEG_API destseg_status destseg_open(const char *path, const destseg_options *options,
                                        destseg_predictor **predictor) DESTSEG_NOEXCEPT;

/* Release everything. NULL, and a handle that is closed already, do nothing. */
DESTSEG_API void destseg_close(destseg_predictor *predictor) DESTSEG_NOEXCEPT;

/* Fill in what an artifact takes and gives; info->struct_size must be set. */
DESTSEG_API destseg_status destseg_get_info(destseg_predictor *predictor,
                                            destseg_info *info) DESTSEG_NOEXCEPT;

/* Copy a text of an artifact into the caller's buffer, with a final zero.
 *
 *   name    an entry of the spec, with dots for nesting: "category", "precision", "kind",
 *           "threshold.rule", "artifact.sha256", "tools.torch", "engine.gpu"; or "spec", the whole
 *           .json; or "backend", "backend.version" and "device", what runs here
 *   buffer  may be NULL when size is 0, to ask for the size only
 *   size    of the buffer in bytes
 *   needed  receives the bytes needed, final zero included; may be NULL
 *
 * Fails with DESTSEG_ERROR_ARGUMENT when there is no such entry or it is no text, and when the
 * buffer is too short (then it holds nothing but a zero, if it holds anything). */
DESTSEG_API destseg_status destseg_get_text(destseg_predictor *predictor, const char *name,
                                            char *buffer, size_t size,
                                            size_t *needed) DESTSEG_NOEXCEPT;

/* Score frames: any number, each of its own size and format where info.any_size is 1.
 *
 *   frames       count of them
 *   count        at least 1; more than the artifact's optimal batch are done in turn
 *   results      receives count answers
 *   maps         receives count maps of map_height x map_width floats in [0, 1], one after the
 *                other without gaps; NULL when they are not wanted
 *   maps_floats  how many floats maps has room for; 0 with NULL */
DESTSEG_API destseg_status destseg_infer(destseg_predictor *predictor, const destseg_frame *frames,
                                         int32_t count, destseg_result *results, float *maps,
                                         size_t maps_floats) DESTSEG_NOEXCEPT;

/* Judge a score, as destseg_infer does; fails with DESTSEG_ERROR_SPEC without a threshold. */
DESTSEG_API destseg_status destseg_judge(destseg_predictor *predictor, float score,
                                         destseg_result *result) DESTSEG_NOEXCEPT;

#ifdef __cplusplus
}
#endif
#endif
