/* png.h: stb_image.h 2.27, as Debian's libstb-dev has it but for two places marked destseg-deploy,
   for PNG only; its licence is at its end. */
#ifndef PNG_H
#define PNG_H

#if defined(__GNUC__)
#pragma GCC system_header /* its warnings are not ours to mend */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function" /* what PNG does not need */
#elif defined(_MSC_VER)
#pragma warning(push, 0)
#endif
#define STB_IMAGE_IMPLEMENTATION
#define STBI_ONLY_PNG
#define STBI_NO_LINEAR
#define STBI_NO_STDIO
#define STBI_NO_THREAD_LOCALS /* in MinGW they need DLLs of its own */
#define STBI_NO_FAILURE_STRINGS
#define STBI_MAX_DIMENSIONS 65536
#include "stb_image.h"
#if defined(__GNUC__)
#pragma GCC diagnostic pop
#elif defined(_MSC_VER)
#pragma warning(pop)
#endif

#endif
