// Which entries a spec has, and of which types: the dataclasses of destseg_deploy/spec as tables.
#pragma once

#include <string>

#include "json.hpp"

namespace destseg_core {

// Check names and types of all entries of a spec of format 1 or 2. Throws Error (spec) with the
// first entry that is unknown, missing or of another type; `where` is what to call the spec.
void check_entries(const Json &data, int format, const std::string &where);

// Check the entry "engine" of format 1, which its table leaves free; `engine` has no "architecture"
// where the exporter did not know it.
void check_engine_entries(const Json &engine, const std::string &where);

}  // namespace destseg_core
