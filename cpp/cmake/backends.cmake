# Chooses the back ends; sets DESTSEG_BACKEND_SOURCES, _DEFINITIONS and _INCLUDES. Their libraries are
# loaded at run time, so none has to be here: only TensorRT needs the vendor's headers.
set(DESTSEG_BACKEND_SOURCES)
set(DESTSEG_BACKEND_DEFINITIONS)
set(DESTSEG_BACKEND_INCLUDES)

# destseg_backend(NAME source...): take a back end in.
function(destseg_backend name)
  string(TOLOWER ${name} lower)
  message(STATUS "destseg back end ${lower}: built in, loaded at run time")
  set(DESTSEG_BACKEND_SOURCES ${DESTSEG_BACKEND_SOURCES} src/backend_${lower}.cpp ${ARGN}
      PARENT_SCOPE)
  set(DESTSEG_BACKEND_DEFINITIONS ${DESTSEG_BACKEND_DEFINITIONS} DESTSEG_HAVE_${name}
      PARENT_SCOPE)
endfunction()

if(NOT DESTSEG_WITH_ONNXRUNTIME STREQUAL "OFF")
  destseg_backend(ONNXRUNTIME src/onnxruntime_api.cpp)
endif()
if(NOT DESTSEG_WITH_OPENVINO STREQUAL "OFF")
  destseg_backend(OPENVINO src/openvino_api.cpp)
endif()

# TensorRT or TensorRT-RTX, and the CUDA runtime: their headers.
option(DESTSEG_FAKE_TENSORRT "For tests: a TensorRT that runs nothing but tests, on the CPU" OFF)
if(DESTSEG_FAKE_TENSORRT)
  add_library(destseg_fake_tensorrt SHARED test/fake_tensorrt/fake_tensorrt.cpp)
  target_include_directories(destseg_fake_tensorrt PRIVATE test/fake_tensorrt)
  target_link_libraries(destseg_fake_tensorrt PRIVATE destseg_options)
  set_target_properties(destseg_fake_tensorrt PROPERTIES CXX_VISIBILITY_PRESET default)
  set(DESTSEG_BACKEND_INCLUDES ${PROJECT_SOURCE_DIR}/test/fake_tensorrt)
elseif(NOT DESTSEG_WITH_TENSORRT STREQUAL "OFF")
  set(TENSORRT_ROOT "" CACHE PATH "TensorRT or TensorRT-RTX: include/")
  find_path(TENSORRT_INCLUDE_DIR NvInferRuntime.h HINTS ${TENSORRT_ROOT} PATH_SUFFIXES include)
  find_path(CUDA_RUNTIME_INCLUDE_DIR cuda_runtime_api.h
            HINTS ${TENSORRT_ROOT} ENV CUDA_PATH /usr/local/cuda PATH_SUFFIXES include)
  if(TENSORRT_INCLUDE_DIR AND CUDA_RUNTIME_INCLUDE_DIR)
    set(DESTSEG_BACKEND_INCLUDES ${TENSORRT_INCLUDE_DIR} ${CUDA_RUNTIME_INCLUDE_DIR})
  elseif(DESTSEG_WITH_TENSORRT STREQUAL "ON")
    message(FATAL_ERROR "TENSORRT was asked for, and its headers or CUDA's were not found. See "
                        "cpp/README.md for what to set.")
  else()
    message(STATUS "destseg back end tensorrt: left out, its headers were not found")
  endif()
endif()
if(DESTSEG_BACKEND_INCLUDES)
  destseg_backend(TENSORRT src/cuda_api.cpp)
endif()

if(NOT DESTSEG_BACKEND_SOURCES)
  message(WARNING "destseg is built without any back end and can open nothing.")
endif()
