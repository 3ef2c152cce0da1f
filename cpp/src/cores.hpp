// The processor's cores: which threads may be pinned to, and what the processor is called.
#pragma once

#include <string>
#include <vector>

namespace destseg_core {

// The numbers in a text such as "2,3,5". Throws Error: argument for another text, backend for a core that
// this process may not run on, of which ONNX Runtime would only print a line.
std::vector<int> cores_of(const std::string &text);

// The logical processors that this process may run on, counted from 0.
std::vector<int> allowed_cores();

// The processor's name as its maker gives it, such as "AMD EPYC"; the architecture's where there is none.
std::string cpu_name();

}  // namespace destseg_core
