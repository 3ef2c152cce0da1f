/*
 * destseg.h: load what destseg-export wrote, and get a score and a map for each frame.
 *
 * A C ABI for C, C++, C#, LabVIEW and any other language that calls shared libraries. C++ hosts may
 * prefer destseg.hpp, which wraps this file.
 *
 *     destseg_predictor *predictor;
 *     if (destseg_open("cable-fp32.onnx", NULL, &predictor) != DESTSEG_OK) {
 *         fprintf(stderr, "%s\n", destseg_last_error());
 *         return 1;
 *     }
 *
 * Rules that hold for every function:
 *
 * - Errors are returned as a status. destseg_last_error() then says in one line what was wrong, what
 *   was expected and what to do. The library throws no exception to its caller and prints nothing.
 * - The caller owns all memory that it passes. The library owns the texts that it returns; each
 *   function says how long they stay valid. The library keeps nothing of a frame after the call. A
 *   call that fails may have written a part of its results; every verdict is DESTSEG_UNDECIDED then,
 *   but where the struct_size of results is wrong.
 * - A handle is a number that is looked up, not an address, and is never used twice. A handle that
 *   is closed, or was never opened, is refused with DESTSEG_ERROR_BACKEND.
 * - Threads: every function may be called from any thread at any time, also on the same handle.
 *   Up to destseg_options.parallel calls of destseg_infer on one handle run at the same time; more
 *   calls wait. destseg_close waits for the calls that are running.
 * - Do not call from a signal handler or from DllMain.
 * - After fork, the child cannot use the handles of its parent: they are refused, and destseg_close
 *   does nothing with them. A host that becomes a daemon opens its artifacts after that.
 * - Paths and texts are UTF-8, on Windows too.
 *
 * Structs with a struct_size can only grow at their end, and the library reads and writes no more of
 * them than struct_size says, in arrays, too. So a host that was compiled with an older header keeps working as long
 * as destseg_abi_version() stays the same. A host with a newer header also works, unless it sets an
 * option that the library does not know; that option is refused. destseg_point does not change.
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

/* Changes when a host that is already compiled could no longer use the library. */
#define DESTSEG_ABI_VERSION 2

#ifdef __cplusplus
#define DESTSEG_NOEXCEPT noexcept
extern "C" {
#else
#define DESTSEG_NOEXCEPT
#endif

/* The result of a call. The first three errors are SpecError, ShapeError and BackendError of the
 * Python runtime. */
typedef int32_t destseg_status;
#define DESTSEG_OK 0
#define DESTSEG_ERROR_SPEC 1     /* the .json is missing, damaged, or of another file */
#define DESTSEG_ERROR_SHAPE 2    /* a frame of a size or format that the artifact refuses */
#define DESTSEG_ERROR_BACKEND 3  /* a runtime, device or artifact is missing or failed */
#define DESTSEG_ERROR_ARGUMENT 4 /* a null pointer, a short buffer, an unknown constant */
#define DESTSEG_ERROR_MEMORY 5   /* not enough memory */
#define DESTSEG_ERROR_INTERNAL 6 /* a bug in this library; please report it with its text */
#define DESTSEG_ERROR_TIMEOUT 7  /* the time that was given has passed; the call may be repeated */

/* Levels of what destseg_options.log receives. */
#define DESTSEG_LOG_INFO 1
#define DESTSEG_LOG_WARNING 2 /* answers may be slower, or less accurate, than they could be */
#define DESTSEG_LOG_ERROR 3

/* Receives what the library and its back end report: a line of UTF-8 without its end, valid during the
 * call. It is called in any thread, in several at once, until destseg_close has returned. It must return
 * soon, throw nothing, and call no function of this library. */
typedef void (*destseg_log_function)(void *context, int32_t level, const char *message);

/* An open artifact. */
typedef struct destseg_predictor destseg_predictor;

/* How an artifact is opened. Zero everything and set struct_size; zeros mean the defaults. */
typedef struct destseg_options {
  uint32_t struct_size; /* sizeof(destseg_options) */
  int32_t threads;      /* threads within one inference on a CPU; 0 leaves it to the back end */
  int32_t parallel;     /* calls on this handle that run at once, 1 to 64; 0 means 2 */
  int32_t tuned;        /* 1: back end, precision, threads, spinning and streams are what `destseg tune`
                           found fastest on this machine and wrote beside the artifact, as
                           <name>.tuning.json; leave them out then. The call fails where that was made
                           on another machine, for another file or with another version of the back
                           end. 0: they are as said here */
  const char *backend;  /* "onnxruntime", "openvino" or "tensorrt"; NULL takes, for .onnx, the
                           first of these whose library is found, and for .engine TensorRT */
  const char *device;   /* "cpu", "cuda" or "cuda:<index>"; NULL means "cpu" for .onnx and "cuda"
                           for .engine. No other device is used in its place: the call
                           fails if the device is missing */
  const char *precision; /* for OpenVINO only: "fp32", or "bf16" where the CPU computes in it: about
                           twice as fast, with scores that differ by up to a few hundredths, so set
                           the threshold in the precision that runs. NULL means "fp32". Layers that
                           the artifact holds in INT8 run in INT8 either way */
  const char *worker_cores; /* for ONNX Runtime on a CPU only: the cores that the threads of an
                           inference are pinned to, one each, such as "2,3,5", counted from 0. The
                           calling thread works, too, and stays where the host puts it: N cores make
                           N + 1 threads. NULL pins none */
  int32_t no_spinning;  /* for ONNX Runtime on a CPU only: 1 lets waiting threads sleep at once, for
                           a PC shared with other programs; 0 lets them look for work for a while */
  int32_t queue;        /* tickets of destseg_submit that may be open, 1 to 1024; 0 means 16 */
  destseg_log_function log; /* NULL: nothing is reported */
  void *log_context;    /* given to log */
} destseg_options;

/* What an artifact takes and gives. */
typedef struct destseg_info {
  uint32_t struct_size;    /* sizeof(destseg_info), set by the caller */
  int32_t any_size;        /* 1: frames of any size up to 65536 pixels on each side are taken and
                              resized here, with the kernel of the training. 0: frames of height x
                              width only */
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
  int32_t threshold_images; /* images that the threshold was set from; 0 when set by hand */
  double threshold_score;  /* an image with a greater score is NG; NaN without a threshold */
  double threshold_pixel;  /* a pixel with a greater value is drawn as defective */
} destseg_info;

/* Formats of pixels, named as GenICam names them. Each is brought to RGB, or to grey, in whole numbers,
 * as destseg_deploy/data/pixel_formats.py does in Python, to the same bits. */
#define DESTSEG_GREY8 1 /* Mono8 */
#define DESTSEG_RGB8 2
#define DESTSEG_BGR8 3
#define DESTSEG_RGBA8 4 /* the fourth channel is not looked at */
#define DESTSEG_BGRA8 5
#define DESTSEG_MONO10 6 /* 16 bit per pixel, in the PC's byte order, the value in the low bits */
#define DESTSEG_MONO12 7
#define DESTSEG_MONO16 8
#define DESTSEG_RGB8_PLANAR 9 /* a plane of red, then green, then blue */
#define DESTSEG_BAYER_RG8 10  /* the first row begins R G; at least 2 x 2 pixels */
#define DESTSEG_BAYER_GB8 11
#define DESTSEG_BAYER_GR8 12
#define DESTSEG_BAYER_BG8 13
#define DESTSEG_YUV422_8 14      /* Y U Y V, BT.601 from 0 to 255; an even width */
#define DESTSEG_YUV422_8_UYVY 15 /* U Y V Y */

/* A frame in the caller's memory. Zero everything and set what follows. */
typedef struct destseg_frame {
  uint32_t struct_size;  /* sizeof(destseg_frame), in each frame of an array */
  int32_t format;        /* DESTSEG_GREY8 to DESTSEG_YUV422_8_UYVY */
  const uint8_t *pixels; /* the top left pixel */
  int64_t stride;        /* bytes from a row to the one below it; 0 when rows follow each other
                            without a gap; negative for images stored bottom up */
  int32_t height;
  int32_t width;
  int32_t maximum;       /* of MONO10, MONO12 and MONO16: the value of white, 1 to 65535; greater
                            ones are white, too. 0 means 1023, 4095 and 65535. Else 0 */
  uint32_t reserved;     /* 0, or the call fails */
  int64_t plane;         /* of RGB8_PLANAR: bytes from a plane's first row to the next plane's; 0
                            means height times the stride without its sign. Else 0 */
} destseg_frame;

/* Verdicts. Show normal as OK and anomalous as NG, as the commands and examples do. Undecided is not OK:
 * reject whatever is not DESTSEG_NORMAL. */
#define DESTSEG_UNDECIDED (-1) /* the spec has no threshold yet, or the call failed */
#define DESTSEG_NORMAL 0
#define DESTSEG_ANOMALOUS 1

/* The answer for a frame. */
typedef struct destseg_result {
  uint32_t struct_size;   /* sizeof(destseg_result), set by the caller, in the first of an array */
  float score;            /* raw, in [0, 1] */
  float normalized_score; /* in [0, 1], the threshold at 0.5; NaN without a threshold */
  int32_t verdict;        /* anomalous (NG) when score > threshold */
} destseg_result;

/* Milliseconds that a call of destseg_infer took, or a ticket of destseg_submit without its wait in the
 * queue. */
typedef struct destseg_times {
  uint32_t struct_size; /* sizeof(destseg_times), set by the caller */
  int32_t frames;
  double waited_ms;     /* for one of the lanes, while other calls ran */
  double prepared_ms;   /* conversion and resize of the frames */
  double inferred_ms;   /* in the back end */
  double finished_ms;   /* checks, copies and verdicts */
} destseg_times;

typedef struct destseg_point {
  int32_t x;
  int32_t y;
} destseg_point;

/* A region of the map above the pixel threshold, in the frame's pixels; (0, 0) is the top left one. Its
 * pixels touch each other, also at corners. */
typedef struct destseg_defect {
  uint32_t struct_size; /* sizeof(destseg_defect), set by the caller, in the first of an array */
  int32_t x;            /* the smallest box around it: its left column, */
  int32_t y;            /* its top row, */
  int32_t width;        /* and its size */
  int32_t height;
  float peak;           /* the greatest value of the map in it, */
  int32_t peak_x;       /* and where that is; the first of equal ones, row by row */
  int32_t peak_y;
  int64_t area;         /* in pixels */
  double centroid_x;    /* mean of its pixels' coordinates */
  double centroid_y;
  int32_t first_point;  /* its contour among the points: the index of the first one, */
  int32_t points;       /* and how many. Each pixel of the outer border, counterclockwise, from the
                           leftmost of the top row on; holes have no contour */
} destseg_defect;

/* The DESTSEG_ABI_VERSION that the library was compiled with. Compare it with yours first. */
DESTSEG_API uint32_t destseg_abi_version(void) DESTSEG_NOEXCEPT;

/* Version of the library, such as "0.1.0". Never freed. */
DESTSEG_API const char *destseg_version(void) DESTSEG_NOEXCEPT;

/* Names of the back ends that were built in, separated by a comma and a space. Never freed. Their
 * libraries are loaded when an artifact first needs one: from this library's own folder; else from
 * the file or folder that DESTSEG_ONNXRUNTIME_LIBRARY, DESTSEG_OPENVINO_LIBRARY or
 * DESTSEG_TENSORRT_LIBRARY (and DESTSEG_CUDART_LIBRARY) names; else from where the system looks. */
DESTSEG_API const char *destseg_backends(void) DESTSEG_NOEXCEPT;

/* What went wrong in the calling thread's last call that failed; "" if no call failed. Valid until that
 * thread's next call that fails. LabVIEW changes threads between calls: ask for it in the
 * same subroutine VI, or call this library in the UI thread. */
DESTSEG_API const char *destseg_last_error(void) DESTSEG_NOEXCEPT;

/* Open an artifact, with its .json beside it (a.json for a.onnx, a.engine.json for a.engine).
 * The spec is checked before the artifact is opened, and the SHA-256 of the artifact before a back
 * end reads it. Specs of formats 1 and 2 are read.
 *
 *   path       .onnx or .engine
 *   options    NULL for the defaults
 *   predictor  receives the handle, or NULL when the call fails; close it with destseg_close */
DESTSEG_API destseg_status destseg_open(const char *path, const destseg_options *options,
                                        destseg_predictor **predictor) DESTSEG_NOEXCEPT;

/* Open another artifact in the place of a handle's, with the same options. Calls that run end with the
 * one they began with; later ones use the new one. When this fails, the old one stays. Sizes and
 * thresholds may be others: call destseg_get_info again.
 *
 *   path  of the same kind as the one that was opened, .onnx or .engine */
DESTSEG_API destseg_status destseg_reload(destseg_predictor *predictor,
                                          const char *path) DESTSEG_NOEXCEPT;

/* Run each of the destseg_options.parallel lanes on grey images, of the smallest and of the best batch, so
 * that the first frame of a shift takes no longer than the others. Waits for the calls that run. */
DESTSEG_API destseg_status destseg_warm_up(destseg_predictor *predictor) DESTSEG_NOEXCEPT;

/* Where the time of the last call of destseg_infer, or of the last ticket, went that ended on this handle, in
 * any thread; zeros before the first. Set times->struct_size first. */
DESTSEG_API destseg_status destseg_get_times(destseg_predictor *predictor,
                                             destseg_times *times) DESTSEG_NOEXCEPT;

/* Release everything, after waiting for the calls that run; the library may be unloaded then. Tickets that
 * were not begun are dropped. NULL, and a handle that is closed already, do nothing. */
DESTSEG_API void destseg_close(destseg_predictor *predictor) DESTSEG_NOEXCEPT;

/* Write what an artifact takes and gives to *info; set info->struct_size first. */
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
 * Fails with DESTSEG_ERROR_ARGUMENT when the entry does not exist or is not a text, and when
 * the buffer is too short (then it holds an empty text). */
DESTSEG_API destseg_status destseg_get_text(destseg_predictor *predictor, const char *name,
                                            char *buffer, size_t size,
                                            size_t *needed) DESTSEG_NOEXCEPT;

/* Score frames: any number, each of its own size and format where info.any_size is 1.
 *
 *   frames       count of them
 *   count        at least 1; more than the artifact's optimal batch are done one group after another
 *   results      room for count answers; when the call fails, count verdicts DESTSEG_UNDECIDED
 *   maps         receives count maps of map_height x map_width floats in [0, 1], one after the
 *                other without gaps; NULL when they are not wanted
 *   maps_floats  how many floats maps has room for; 0 with NULL
 *
 * Fails with DESTSEG_ERROR_BACKEND, without a verdict for them, where answers are not in [0, 1]. */
DESTSEG_API destseg_status destseg_infer(destseg_predictor *predictor, const destseg_frame *frames,
                                         int32_t count, destseg_result *results, float *maps,
                                         size_t maps_floats) DESTSEG_NOEXCEPT;

/* Hand frames over and go on, such as with the next exposure. They are converted and resized in this call,
 * so their pixels are the caller's again when it returns. Tickets are worked off in the order of their
 * numbers, destseg_options.parallel of them at once, by threads of the library, with the artifact that
 * was open when they were submitted.
 *
 *   frames      as for destseg_infer
 *   timeout_ms  how long to wait while destseg_options.queue tickets are open; 0 does not wait, a negative
 *               number waits until there is room
 *   ticket      receives the number to collect the answers with; 0 when the call fails
 *
 * A ticket is open until its answers are collected, so collect each of them, or close the predictor.
 * Fails with DESTSEG_ERROR_TIMEOUT when there is no room in time. */
DESTSEG_API destseg_status destseg_submit(destseg_predictor *predictor, const destseg_frame *frames,
                                          int32_t count, int32_t timeout_ms,
                                          uint64_t *ticket) DESTSEG_NOEXCEPT;

/* Collect the answers of a ticket, once, in any order and in any thread.
 *
 *   timeout_ms  how long to wait for them; 0 does not wait, a negative number waits until they are there
 *   count       the number of frames that were submitted
 *   results,maps,maps_floats  as for destseg_infer
 *
 * Fails with DESTSEG_ERROR_TIMEOUT when they are not there in time, and with DESTSEG_ERROR_ARGUMENT
 * for another count or too little room; the ticket stays open then. Any other error is that of the inference,
 * and closes the ticket. destseg_close drops what was not begun: who waits for it gets
 * DESTSEG_ERROR_BACKEND. */
DESTSEG_API destseg_status destseg_wait(destseg_predictor *predictor, uint64_t ticket,
                                        int32_t timeout_ms, int32_t count, destseg_result *results,
                                        float *maps, size_t maps_floats) DESTSEG_NOEXCEPT;

/* A view of a part of a frame, without a copy: what destseg_infer scores then. Add x and y to what
 * destseg_defects finds in it, and it is in the whole frame's pixels.
 *
 *   frame         of any format; its pixels are not read
 *   x,y           of the part's top left pixel; x is even in YUV422
 *   width,height  of the part, which lies inside of the frame
 *   part          receives the view; it has the size of frame, frame->struct_size, and may be
 *                 frame itself */
DESTSEG_API destseg_status destseg_crop(const destseg_frame *frame, int32_t x, int32_t y,
                                        int32_t width, int32_t height,
                                        destseg_frame *part) DESTSEG_NOEXCEPT;

/* Bring a map of destseg_infer to a frame's size: bilinear, centres of pixels at halves, as
 * destseg_defects does.
 *
 *   map           map_height x map_width floats
 *   height,width  of the frame, 1 to 65536
 *   target        receives height x width floats
 *   target_floats how many floats target has room for */
DESTSEG_API destseg_status destseg_map_at_frame(destseg_predictor *predictor, const float *map,
                                                int32_t height, int32_t width, float *target,
                                                size_t target_floats) DESTSEG_NOEXCEPT;

/* Find the defects in a map of destseg_infer: the map is brought to the frame's size (bilinear, centres of
 * pixels at halves) and cut at the pixel threshold. The greatest peak comes first; of equal ones, the
 * one that begins first, row by row.
 *
 *   map           map_height x map_width floats in [0, 1]
 *   height,width  of the frame, 1 to 65536
 *   threshold     0 to 1; a negative one means threshold_pixel of the artifact
 *   defects       receives at most defects_room; NULL with 0
 *   points        receives at most points_room points of all contours; NULL with 0
 *   count         receives the number of defects, also of those without room
 *   point_count   receives the number of points, also of those without room; may be NULL
 *
 * Fails with DESTSEG_ERROR_SPEC where the artifact's threshold is asked for and not set yet. */
DESTSEG_API destseg_status destseg_defects(destseg_predictor *predictor, const float *map,
                                           int32_t height, int32_t width, double threshold,
                                           destseg_defect *defects, int32_t defects_room,
                                           destseg_point *points, int32_t points_room,
                                           int32_t *count, int32_t *point_count) DESTSEG_NOEXCEPT;

/* Judge a score, as destseg_infer does; fails with DESTSEG_ERROR_SPEC without a threshold, and with
 * DESTSEG_ERROR_ARGUMENT for a score that is not in [0, 1]; the verdict is DESTSEG_UNDECIDED then. */
DESTSEG_API destseg_status destseg_judge(destseg_predictor *predictor, float score,
                                         destseg_result *result) DESTSEG_NOEXCEPT;

#ifdef __cplusplus
}
#endif
#endif
