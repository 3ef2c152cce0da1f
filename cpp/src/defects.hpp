// Regions of a map above the pixel threshold: the C++ twin of destseg_deploy/data/defects.py, with equal
// values.
#pragma once

#include <vector>

#include "destseg.h"
#include "spec.hpp"

namespace destseg_core {

struct Defects {
  std::vector<destseg_defect> regions;  // the greatest peak first
  std::vector<destseg_point> points;    // of their contours
};

// Find them in a map, at the frame's size; see destseg_defects.
Defects find_defects(const float *map, Size map_size, Size frame, float threshold);

// Write a map at the frame's size; see destseg_map_at_frame.
void enlarge(const float *map, Size map_size, Size frame, float *target);

}  // namespace destseg_core
