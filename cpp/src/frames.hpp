// Frames of the caller: checked as in Python's Predictor, and resized to the input's size.
#pragma once

#include "destseg.h"
#include "resize.hpp"
#include "spec.hpp"

namespace destseg_core {

// Throws Error: shape where the Python runtime raises ShapeError, argument for what only C has.
void check_frame(const destseg_frame &frame, const Spec &spec);

// Brings checked frames to (height, width, 3) RGB. Used by one thread at a time.
class FrameFitter {
 public:
  FrameFitter(const Spec &spec, WeightCache &cache) : spec_(spec), cache_(cache) {}
  void fit(const destseg_frame &frame, std::uint8_t *target);

 private:
  void unpack(const destseg_frame &frame);

  const Spec &spec_;
  WeightCache &cache_;
  Pixels first_, second_;
};

}  // namespace destseg_core
