// Too little memory, found in the words of the runtimes as by destseg_deploy/memory.py; and too few
// threads.
//
// They report both as they report a damaged file, and differ in their words only. Somebody who is told to
// export again would look for the fault in the wrong place.
#pragma once

#include <string>

#include "error.hpp"

namespace destseg_core {

// Whether a runtime's message says that memory was missing.
bool lacks_memory(const std::string &message);

// The error (memory) that says so and what to do; `what` is the file, or what else needed the memory.
Error memory_error(const std::string &what, const std::string &message);

// Throws memory_error where memory was missing, and Error (backend) where threads could not be started.
void refuse_shortage(const std::string &what, const std::string &message);

}  // namespace destseg_core
