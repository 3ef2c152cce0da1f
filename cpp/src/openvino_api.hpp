// OpenVINO's C API, as much of it as is called here: declarations of our own, so that the build needs
// no headers of it. The numbers of its element types differ between releases, so the back end asks for them.
#pragma once

#include <cstddef>
#include <cstdint>

namespace destseg_core::openvino {

struct Core;
struct Model;
struct CompiledModel;
struct InferRequest;
struct Tensor;
struct ConstPort;
struct Version {
  const char *build;
  const char *description;
};
struct Shape {
  std::int64_t rank;
  std::int64_t *sizes;
};
struct Dimension {
  std::int64_t least, most;  // most is -1 without a limit
};
struct PartialShape {
  Dimension rank;
  Dimension *sizes;
};

// X(name without "ov_", result, arguments). A result of int is a status, 0 for success.
#define DESTSEG_OPENVINO_CALLS(X)                                                                 \
  X(get_openvino_version, int, (Version *))                                                       \
  X(version_free, void, (Version *))                                                              \
  X(get_last_err_msg, const char *, ())                                                           \
  X(free, void, (const char *))                                                                   \
  X(core_create, int, (Core **))                                                                  \
  X(core_free, void, (Core *))                                                                    \
  X(core_read_model, int, (const Core *, const char *path, const char *weights, Model **))        \
  X(core_read_model_from_memory_buffer, int,                                                      \
    (const Core *, const char *, std::size_t, const Tensor *weights, Model **))                   \
  X(core_compile_model, int,                                                                      \
    (const Core *, const Model *, const char *device, std::size_t texts, CompiledModel **, ...))  \
  X(core_get_property, int, (const Core *, const char *device, const char *key, char **))         \
  X(model_free, void, (Model *))                                                                  \
  X(model_inputs_size, int, (const Model *, std::size_t *))                                       \
  X(model_const_input_by_name, int, (const Model *, const char *, ConstPort **))                  \
  X(model_const_output_by_name, int, (const Model *, const char *, ConstPort **))                 \
  X(output_const_port_free, void, (ConstPort *))                                                  \
  X(port_get_element_type, int, (const ConstPort *, int *))                                       \
  X(port_get_partial_shape, int, (const ConstPort *, PartialShape *))                             \
  X(partial_shape_free, void, (PartialShape *))                                                   \
  X(shape_free, int, (Shape *))                                                                   \
  X(compiled_model_free, void, (CompiledModel *))                                                 \
  X(compiled_model_create_infer_request, int, (const CompiledModel *, InferRequest **))           \
  X(infer_request_free, void, (InferRequest *))                                                   \
  X(infer_request_set_tensor, int, (InferRequest *, const char *name, const Tensor *))            \
  X(infer_request_get_tensor, int, (const InferRequest *, const char *name, Tensor **))           \
  X(infer_request_infer, int, (InferRequest *))                                                   \
  X(infer_request_start_async, int, (InferRequest *))                                             \
  X(infer_request_wait, int, (InferRequest *))                                                    \
  X(tensor_create, int, (int type, Shape, Tensor **))                                             \
  X(tensor_free, void, (Tensor *))                                                                \
  X(tensor_get_shape, int, (const Tensor *, Shape *))                                             \
  X(tensor_data, int, (const Tensor *, void **))

struct Api {
#define DESTSEG_MEMBER(name, result, arguments) result(*name) arguments;
  DESTSEG_OPENVINO_CALLS(DESTSEG_MEMBER)
#undef DESTSEG_MEMBER
};

// Loads OpenVINO at the first call. Throws Error (backend) where there is none.
const Api &openvino_api();

}  // namespace destseg_core::openvino
