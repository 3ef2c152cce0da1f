/* arguments.h: the command line, and files by their names, in UTF-8, on Windows as elsewhere. For
 * the examples; works in C and C++. */
#ifndef ARGUMENTS_H
#define ARGUMENTS_H

#include <stdio.h>
#include <stdlib.h>

#ifdef _WIN32
#ifndef NOMINMAX
#define NOMINMAX
#endif
#include <windows.h>

#include <shellapi.h>

static char *utf8_of(const wchar_t *text) {
  const int size = WideCharToMultiByte(CP_UTF8, 0, text, -1, NULL, 0, NULL, NULL);
  char *bytes = (char *)malloc((size_t)size);
  if (bytes != NULL) WideCharToMultiByte(CP_UTF8, 0, text, -1, bytes, size, NULL, NULL);
  return bytes;
}

/* The arguments in UTF-8, which main() itself gets in the code page of the PC; the console shows
 * UTF-8 from then on. Never freed. NULL without memory. */
static char **utf8_arguments(int *argc, char **argv) {
  wchar_t **wide = CommandLineToArgvW(GetCommandLineW(), argc);
  char **bytes = (char **)calloc((size_t)*argc + 1, sizeof *bytes);
  int i;
  (void)argv;
  SetConsoleOutputCP(CP_UTF8);
  if (wide == NULL || bytes == NULL) return NULL;
  for (i = 0; i < *argc; ++i)
    if ((bytes[i] = utf8_of(wide[i])) == NULL) return NULL;
  LocalFree(wide);
  return bytes;
}

static FILE *utf8_fopen(const char *path, const char *mode) {
  wchar_t wide_path[4096], wide_mode[8];
  if (MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, path, -1, wide_path, 4096) == 0 ||
      MultiByteToWideChar(CP_UTF8, 0, mode, -1, wide_mode, 8) == 0)
    return NULL;
  return _wfopen(wide_path, wide_mode);
}
#else
#define utf8_arguments(argc, argv) (argv)
#define utf8_fopen fopen
#endif

#endif
