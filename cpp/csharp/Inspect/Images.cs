using System;
using System.IO;
using Destseg;

namespace Inspect
{
    /// <summary>Images: uncompressed BMP of 24 bit, and binary PGM (P5) and PPM (P6) of 8 bit.</summary>
    internal static class Images
    {
        internal static Frame Read(string path)
        {
            if (Directory.Exists(path)) throw new IOException(path + ": is a folder; pass an image");
            byte[] file = File.ReadAllBytes(path);
            bool bmp = file.Length > 1 && file[0] == 'B' && file[1] == 'M';
            return bmp ? Bmp(path, file) : Pnm(path, file);
        }

        // Mostly bottom up, in rows of whole four bytes.
        private static Frame Bmp(string path, byte[] file)
        {
            bool known = file.Length >= 54 && BitConverter.ToInt32(file, 14) >= 40 &&
                BitConverter.ToUInt16(file, 28) == 24 && BitConverter.ToInt32(file, 30) == 0;
            if (!known) throw new IOException(path + ": is no uncompressed BMP of 24 bit");
            int start = BitConverter.ToInt32(file, 10), width = BitConverter.ToInt32(file, 18);
            long height = BitConverter.ToInt32(file, 22), rows = Math.Abs(height);
            long stride = ((long)width * 3 + 3) / 4 * 4;
            if (width < 1 || width > 65536 || rows < 1 || rows > 65536)
                throw new IOException(path + ": is a BMP of a wrong size");
            if (start < 0 || file.Length - start < stride * rows)
                throw new IOException(path + ": is cut off");
            var pixels = new byte[stride * rows];
            for (long y = 0; y < rows; ++y)
                Array.Copy(file, start + stride * (height < 0 ? y : rows - 1 - y), pixels, stride * y, stride);
            return new Frame(pixels, (int)rows, width, PixelFormat.Bgr8, (int)stride);
        }

        private static Frame Pnm(string path, byte[] file)
        {
            int at = 2;
            bool known = file.Length > 2 && file[0] == 'P' && (file[1] == '5' || file[1] == '6');
            int width = known ? Number(file, ref at) : 0, height = known ? Number(file, ref at) : 0;
            if (width == 0 || height == 0 || Number(file, ref at) != 255)
                throw new IOException(path + ": is no BMP, and no binary PGM or PPM of 8 bit");
            ++at; // the white space after the last number
            PixelFormat format = file[1] == '5' ? PixelFormat.Mono8 : PixelFormat.Rgb8;
            long size = (long)width * height * (format == PixelFormat.Mono8 ? 1 : 3);
            if (file.Length - at < size) throw new IOException(path + ": is cut off");
            var pixels = new byte[size];
            Array.Copy(file, at, pixels, 0, size);
            return new Frame(pixels, height, width, format);
        }

        // A positive number after white space and comments, or 0.
        private static int Number(byte[] file, ref int at)
        {
            while (at < file.Length && (file[at] == '#' || file[at] <= ' '))
                if (file[at++] == '#')
                    while (at < file.Length && file[at] != '\n') ++at;
            int value = 0;
            for (; at < file.Length && file[at] >= '0' && file[at] <= '9'; ++at)
                if ((value = value * 10 + (file[at] - '0')) > 65536) return 0;
            return value;
        }
    }
}
