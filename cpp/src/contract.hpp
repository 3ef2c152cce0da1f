// What an ONNX file says of itself. The C++ twin of destseg_deploy/spec/contract.py.
#pragma once

#include <filesystem>

#include "spec.hpp"

namespace destseg_core {

// Compare the contract in an ONNX file's metadata with its spec, where it has one. Throws Error
// (spec) if they differ, or if weights lie in another file, which no hash covers.
void check_contract(const Spec &spec, const std::filesystem::path &artifact);

}  // namespace destseg_core
