# Finds the back ends; sets DESTSEG_BACKEND_SOURCES, _DEFINITIONS and _LIBRARIES.
set(DESTSEG_BACKEND_SOURCES)
set(DESTSEG_BACKEND_DEFINITIONS)
set(DESTSEG_BACKEND_LIBRARIES)

# destseg_backend(NAME found library...): take a back end in, leave it out, or stop.
function(destseg_backend name found)
  string(TOLOWER ${name} lower)
  if(NOT found)
    if(DESTSEG_WITH_${name} STREQUAL "ON")
      message(FATAL_ERROR "${name} was asked for and not found. See cpp/README.md for what to set.")
    endif()
    message(STATUS "destseg back end ${lower}: not found")
    return()
  endif()
  message(STATUS "destseg back end ${lower}: built in")
  set(DESTSEG_BACKEND_SOURCES ${DESTSEG_BACKEND_SOURCES} src/backend_${lower}.cpp PARENT_SCOPE)
  set(DESTSEG_BACKEND_DEFINITIONS ${DESTSEG_BACKEND_DEFINITIONS} DESTSEG_HAVE_${name}
      PARENT_SCOPE)
  set(DESTSEG_BACKEND_LIBRARIES ${DESTSEG_BACKEND_LIBRARIES} ${ARGN} PARENT_SCOPE)
endfunction()

# A library of no package: an imported target whose headers raise no warnings of ours.
function(destseg_import target includes)
  add_library(${target} INTERFACE)
  target_include_directories(${target} SYSTEM INTERFACE ${includes})
  target_link_libraries(${target} INTERFACE ${ARGN})
endfunction()

# ONNX Runtime: a release package, or headers and library on their own.
if(NOT DESTSEG_WITH_ONNXRUNTIME STREQUAL "OFF")
  set(ONNXRUNTIME_ROOT "" CACHE PATH "A release package of ONNX Runtime: include/ and lib/")
  find_path(ONNXRUNTIME_INCLUDE_DIR onnxruntime_c_api.h HINTS ${ONNXRUNTIME_ROOT}
            PATH_SUFFIXES include include/onnxruntime onnxruntime
                          include/onnxruntime/core/session)
  find_library(ONNXRUNTIME_LIBRARY onnxruntime HINTS ${ONNXRUNTIME_ROOT} PATH_SUFFIXES lib lib64)
  set(found OFF)
  if(ONNXRUNTIME_INCLUDE_DIR AND ONNXRUNTIME_LIBRARY)
    set(found ON)
    destseg_import(destseg_onnxruntime ${ONNXRUNTIME_INCLUDE_DIR} ${ONNXRUNTIME_LIBRARY})
  endif()
  destseg_backend(ONNXRUNTIME ${found} $<BUILD_INTERFACE:destseg_onnxruntime>)
endif()

# OpenVINO: its own package, also inside the pip wheel (-DOpenVINO_DIR=.../openvino/cmake).
if(NOT DESTSEG_WITH_OPENVINO STREQUAL "OFF")
  find_package(OpenVINO QUIET COMPONENTS Runtime)
  set(found OFF)
  if(OpenVINO_FOUND)
    set(found ON)
  endif()
  destseg_backend(OPENVINO ${found} openvino::runtime)
endif()

# TensorRT or TensorRT-RTX, and the CUDA runtime.
option(DESTSEG_FAKE_TENSORRT "For tests: a TensorRT that runs nothing but tests, on the CPU" OFF)
if(DESTSEG_FAKE_TENSORRT)
  add_library(destseg_tensorrt STATIC test/fake_tensorrt/fake_tensorrt.cpp)
  target_include_directories(destseg_tensorrt PUBLIC test/fake_tensorrt)
  target_link_libraries(destseg_tensorrt PRIVATE $<BUILD_INTERFACE:destseg_options>)
  destseg_backend(TENSORRT ON $<BUILD_INTERFACE:destseg_tensorrt>)
elseif(NOT DESTSEG_WITH_TENSORRT STREQUAL "OFF")
  set(TENSORRT_ROOT "" CACHE PATH "TensorRT or TensorRT-RTX: include/ and lib/")
  find_path(TENSORRT_INCLUDE_DIR NvInferRuntime.h HINTS ${TENSORRT_ROOT} PATH_SUFFIXES include)
  find_library(TENSORRT_LIBRARY NAMES nvinfer nvinfer_11 nvinfer_10 tensorrt_rtx
               HINTS ${TENSORRT_ROOT} PATH_SUFFIXES lib lib64)
  find_path(CUDA_RUNTIME_INCLUDE_DIR cuda_runtime_api.h HINTS ${TENSORRT_ROOT} /usr/local/cuda
            PATH_SUFFIXES include)
  find_library(CUDA_RUNTIME_LIBRARY cudart HINTS ${TENSORRT_ROOT} /usr/local/cuda
               PATH_SUFFIXES lib lib64 lib/x64)
  set(found OFF)
  if(TENSORRT_INCLUDE_DIR AND TENSORRT_LIBRARY AND CUDA_RUNTIME_INCLUDE_DIR
     AND CUDA_RUNTIME_LIBRARY)
    set(found ON)
    destseg_import(destseg_tensorrt "${TENSORRT_INCLUDE_DIR};${CUDA_RUNTIME_INCLUDE_DIR}"
                   ${TENSORRT_LIBRARY} ${CUDA_RUNTIME_LIBRARY})
  endif()
  destseg_backend(TENSORRT ${found} $<BUILD_INTERFACE:destseg_tensorrt>)
endif()

if(NOT DESTSEG_BACKEND_SOURCES)
  message(WARNING "destseg is built without any back end and can open nothing.")
endif()
