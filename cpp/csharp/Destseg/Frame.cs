using System;
using System.Collections.Generic;
using System.Runtime.InteropServices;

namespace Destseg
{
    /// <summary>A view of pixels in memory that the caller keeps.</summary>
    public sealed class Frame
    {
        private readonly Array array;
        private readonly IntPtr pointer;
        private const long Origin = 1L << 24; // any address: a crop does not read what is there
        private long offset; // of the part's first pixel
        private long plane;

        /// <summary>A view of an array.</summary>
        /// <param name="pixels">The pixels, row by row; the first row is the top one.</param>
        /// <param name="height">In pixels.</param>
        /// <param name="width">In pixels.</param>
        /// <param name="format">What the pixels are.</param>
        /// <param name="stride">Bytes from a row to the next one; 0 for rows without gaps.</param>
        public Frame(byte[] pixels, int height, int width, PixelFormat format, int stride = 0)
            : this((Array)pixels, height, width, format, stride) { }

        /// <summary>A view of an array of 16 bit pixels; the stride is in bytes here, too.</summary>
        public Frame(ushort[] pixels, int height, int width, PixelFormat format, int stride = 0)
            : this((Array)pixels, height, width, format, stride) { }

        /// <summary>A view of memory outside of .NET, as a frame grabber gives it.</summary>
        /// <param name="pixels">The top left pixel.</param>
        /// <param name="height">In pixels.</param>
        /// <param name="width">In pixels.</param>
        /// <param name="format">What the pixels are.</param>
        /// <param name="stride">Bytes from a row to the one below it; 0 for rows without gaps, negative
        /// for images that are stored bottom up.</param>
        public Frame(IntPtr pixels, int height, int width, PixelFormat format, long stride = 0)
        {
            pointer = pixels;
            Height = height;
            Width = width;
            Format = format;
            Stride = stride;
        }

        private Frame(
            IntPtr pixels, int height, int width, PixelFormat format, long stride, Array owner)
            : this(pixels, height, width, format, stride)
        {
            array = owner;
        }

        private Frame(Array pixels, int height, int width, PixelFormat format, long stride)
            : this(IntPtr.Zero, height, width, format, stride)
        {
            if (pixels == null) throw new ArgumentNullException("pixels");
            if (stride < 0)
                throw new ArgumentOutOfRangeException("stride", stride, "expected 0 or more");
            decimal row = (decimal)width * BytesPerPixel(format); // long does not hold what follows
            decimal rows = (decimal)height * (format == PixelFormat.Rgb8Planar ? 3 : 1);
            decimal needed = (rows - 1) * (stride == 0 ? row : stride) + row;
            long there = Buffer.ByteLength(pixels);
            if (height > 0 && width > 0 && there < needed)
                throw new ArgumentException(
                    "pixels: " + there + " bytes, expected at least " + needed + " for " + width + "x" +
                    height + " pixels of " + format + ".");
            array = pixels;
        }

        /// <summary>Left column of this part in the whole frame; 0 for a whole one.</summary>
        public int X { get; private set; }
        /// <summary>Top row of this part in the whole frame.</summary>
        public int Y { get; private set; }

        /// <summary>A view of a part, without a copy. Its defects are in the whole frame's pixels.</summary>
        /// <exception cref="ArgumentException">The frame is at no address.</exception>
        /// <exception cref="DestsegException">It does not lie inside.</exception>
        public Frame Crop(int x, int y, int width, int height)
        {
            if (array == null && pointer == IntPtr.Zero)
                throw new ArgumentException("frame: pixels is null. Pass its memory.");
            var whole = new NativeFrame {
                StructSize = (uint)Marshal.SizeOf(typeof(NativeFrame)), Format = (int)Format,
                Pixels = (IntPtr)Origin, Stride = Stride, Height = Height, Width = Width,
                Maximum = Maximum, Plane = plane };
            NativeFrame part = whole;
            Predictor.Check(Native.destseg_crop(ref whole, x, y, width, height, ref part));
            long moved = part.Pixels.ToInt64() - Origin;
            return new Frame(pointer, height, width, (PixelFormat)part.Format, part.Stride, array) {
                offset = offset + moved, plane = part.Plane, Maximum = Maximum, X = X + x, Y = Y + y };
        }

        /// <summary>In pixels.</summary>
        public int Height { get; }
        /// <summary>In pixels.</summary>
        public int Width { get; }
        /// <summary>What the pixels are.</summary>
        public PixelFormat Format { get; }
        /// <summary>Bytes from a row to the one below it.</summary>
        public long Stride { get; }
        /// <summary>The value of white in Mono10, Mono12 and Mono16; 0 for the format's own.</summary>
        public int Maximum { get; set; }

        internal NativeFrame View(ICollection<GCHandle> pins)
        {
            IntPtr pixels = pointer;
            if (array != null)
            {
                GCHandle pin = GCHandle.Alloc(array, GCHandleType.Pinned);
                pins.Add(pin);
                pixels = pin.AddrOfPinnedObject();
            }
            pixels = new IntPtr(pixels.ToInt64() + offset);
            return new NativeFrame {
                StructSize = (uint)Marshal.SizeOf(typeof(NativeFrame)), Format = (int)Format,
                Pixels = pixels, Stride = Stride, Height = Height, Width = Width, Maximum = Maximum,
                Plane = plane };
        }

        private static int BytesPerPixel(PixelFormat format)
        {
            switch (format)
            {
                case PixelFormat.Rgb8: case PixelFormat.Bgr8: return 3;
                case PixelFormat.Rgba8: case PixelFormat.Bgra8: return 4;
                case PixelFormat.Mono10: case PixelFormat.Mono12: case PixelFormat.Mono16:
                case PixelFormat.Yuv422: case PixelFormat.Yuv422Uyvy: return 2;
                default: return 1;
            }
        }
    }
}
