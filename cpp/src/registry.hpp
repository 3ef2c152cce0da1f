// Handles of the ABI: numbers that are looked up, never followed, and never given out twice.
#pragma once

#include <memory>

#include "destseg.h"
#include "predictor.hpp"

namespace destseg_core {

destseg_predictor *add_handle(std::shared_ptr<Predictor> predictor);
// Keeps the predictor alive while a call uses it. Throws Error (backend) for one that is closed.
std::shared_ptr<Predictor> find_handle(const destseg_predictor *handle);
void remove_handle(const destseg_predictor *handle);

}  // namespace destseg_core
