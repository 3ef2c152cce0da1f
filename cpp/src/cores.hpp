// The cores that threads are pinned to, as destseg_options.worker_cores names them.
#pragma once

#include <string>
#include <vector>

namespace destseg_core {

// The numbers in a text such as "2,3,5". Throws Error: argument for another text, backend for a core that
// this process may not run on, of which ONNX Runtime would only print a line.
std::vector<int> cores_of(const std::string &text);

}  // namespace destseg_core
