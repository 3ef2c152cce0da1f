// How an artifact is opened: what destseg_options asks for, checked.
#pragma once

#include <filesystem>

#include "backend.hpp"
#include "destseg.h"

namespace destseg_core {

struct Opening {
  Request request;
  int parallel;  // calls that run at once
  int queue;     // tickets that may be open
};

// Throws Error for what is missing, wrong, or not of that kind of artifact.
Opening opening_of(const char *path, const destseg_options *given);

// A path of the caller's. Throws Error (argument) for what is not UTF-8.
std::filesystem::path path_of(const char *bytes);
// Throws Error (backend) where there is no such file.
void check_there(const std::filesystem::path &path);

}  // namespace destseg_core
