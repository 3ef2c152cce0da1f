// How an artifact runs fastest on this machine, as `destseg tune` wrote it beside the artifact;
// destseg_deploy/tuning.py is the same in Python.
#pragma once

#include <filesystem>
#include <string>

#include "backend.hpp"

namespace destseg_core {

// Set back end, precision, threads, spinning and streams as the tuning of request.path says. Throws Error
// (backend) where there is none, it is damaged, or it was made on another machine.
void follow_tuning(Request &request);

// Refuse a tuning that was made for another file or with another version of the back end. Throws
// Error (backend).
void check_tuning(const Request &request, const std::string &sha256, const std::string &version);

}  // namespace destseg_core
