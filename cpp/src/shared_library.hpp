// The libraries of the back ends, loaded when an artifact first needs one, and never unloaded: their
// threads may outlive the last call.
#pragma once

#include <functional>
#include <string>
#include <vector>

namespace destseg_core {

// Where the library of a back end is looked for: this library's own folder, then what `variable`
// names, then the system's folders.
struct LibraryNames {
  std::string backend;             // as messages name it, such as "onnxruntime"
  std::string variable;            // of the environment: a file, or a folder that holds it
  std::vector<std::string> files;  // what the system's loader is asked for, the best first
  std::string stem;                // how the file's name begins in a folder
  std::string advice;              // what to install
};

using LibraryHandle = void *;

// Whether a library will do: "" or the reason why not.
using Accept = std::function<std::string(LibraryHandle)>;

// Loads the first library that is found and accepted. What the variable names is never replaced by
// another. Throws Error (backend) that lists where it was searched.
LibraryHandle load_library(const LibraryNames &names, const Accept &accept);

// A function of a loaded library; null when it has none of that name.
void *find_function(LibraryHandle library, const char *name);

template <typename Function>
Function *function_of(LibraryHandle library, const char *name) {
  return reinterpret_cast<Function *>(find_function(library, name));
}

// The names among `wanted` that a library does not have; "" if it has them all.
std::string missing_function(LibraryHandle library, const std::vector<const char *> &wanted);

}  // namespace destseg_core
