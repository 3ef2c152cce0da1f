// Whether an engine fits the machine at hand, by the record in its spec. The C++ twin of
// destseg_deploy/runtime/trt/record.py.
#pragma once

#include <string>

#include "spec.hpp"

namespace destseg_core {

struct Machine {
  std::string builder;  // "tensorrt" or "tensorrt-rtx"
  std::string version;  // of that builder, such as "11.4.0.106"
  std::string gpu;      // its name
  std::string sm;       // its compute capability, such as "sm_90"
};

// The command that builds an engine of this model anew.
std::string rebuild_command(const Spec &spec);

// Throws Error (spec) when the engine was made for another machine, or its record cannot be read.
void check_engine(const Spec &spec, const Machine &machine);

}  // namespace destseg_core
