// Destseg.cs: destseg.h for C#, by P/Invoke. An example: compile it into your project, with
// libdestseg.so, destseg.dll or libdestseg.dylib where the loader finds it. Not compiled by this
// project's tests, which have no .NET; the layouts are checked against destseg.h by
// tests/cpp/test_package.py.
using System;
using System.Runtime.InteropServices;
using System.Text;

namespace Destseg
{
    public enum Status : int { Ok, Spec, Shape, Backend, Argument, Memory, Internal }
    public enum Format : int { Grey8 = 1, Rgb8 = 2, Bgr8 = 3 }
    public enum Verdict : int { Undecided = -1, Normal = 0, Anomalous = 1 }

    [StructLayout(LayoutKind.Sequential)]
    public struct Options
    {
        public uint StructSize;
        public int Threads;
        public int Parallel;
        public uint Reserved;
        public IntPtr Backend; // UTF-8, or zero
        public IntPtr Device;  // UTF-8, or zero
        public IntPtr Precision; // UTF-8, or zero; of OpenVINO only
    }

    [StructLayout(LayoutKind.Sequential)]
    public struct Info
    {
        public uint StructSize;
        public int AnySize;
        public int Height;
        public int Width;
        public int NetworkHeight;
        public int NetworkWidth;
        public int MapHeight;
        public int MapWidth;
        public int BatchMin;
        public int BatchOpt;
        public int BatchMax;
        public int TopK;
        public int HasThreshold;
        public int ThresholdImages;
        public double ThresholdScore;
        public double ThresholdPixel;
    }

    [StructLayout(LayoutKind.Sequential)]
    public struct Frame
    {
        public IntPtr Pixels; // must not move during the call: pin it
        public long Stride;
        public int Height;
        public int Width;
        public Format Format;
        public uint Reserved;
    }

    [StructLayout(LayoutKind.Sequential)]
    public struct Result
    {
        public float Score;
        public float NormalizedScore;
        public Verdict Verdict;
    }

    internal static class Native
    {
        private const string Library = "destseg";

        [DllImport(Library, CallingConvention = CallingConvention.Cdecl)]
        internal static extern uint destseg_abi_version();

        [DllImport(Library, CallingConvention = CallingConvention.Cdecl)]
        internal static extern IntPtr destseg_last_error();

        [DllImport(Library, CallingConvention = CallingConvention.Cdecl)]
        internal static extern Status destseg_open(byte[] path, ref Options options, out IntPtr predictor);

        [DllImport(Library, CallingConvention = CallingConvention.Cdecl)]
        internal static extern void destseg_close(IntPtr predictor);

        [DllImport(Library, CallingConvention = CallingConvention.Cdecl)]
        internal static extern Status destseg_get_info(IntPtr predictor, ref Info info);

        [DllImport(Library, CallingConvention = CallingConvention.Cdecl)]
        internal static extern Status destseg_get_text(
            IntPtr predictor, byte[] name, byte[] buffer, UIntPtr size, out UIntPtr needed);

        [DllImport(Library, CallingConvention = CallingConvention.Cdecl)]
        internal static extern Status destseg_infer(
            IntPtr predictor, [In] Frame[] frames, int count, [Out] Result[] results,
            [Out] float[] maps, UIntPtr mapsFloats);

        [DllImport(Library, CallingConvention = CallingConvention.Cdecl)]
        internal static extern Status destseg_judge(IntPtr predictor, float score, out Result result);
    }

    public sealed class DestsegException : Exception
    {
        public DestsegException(Status status, string message) : base(message) { Status = status; }
        public Status Status { get; }
    }

    // An open artifact. May be shared by threads; the last error is of the thread that failed.
    public sealed class Predictor : IDisposable
    {
        private const uint AbiVersion = 1;
        private IntPtr handle;

        // Names as in destseg_options; null and 0 for its defaults.
        public Predictor(string path, string backend = null, string device = null,
                         string precision = null, int threads = 0, int parallel = 0)
        {
            if (Native.destseg_abi_version() != AbiVersion)
                throw new InvalidOperationException("libdestseg has another ABI than Destseg.cs");
            var options = new Options {
                StructSize = (uint)Marshal.SizeOf<Options>(), Threads = threads, Parallel = parallel,
                Backend = Marshal.StringToCoTaskMemUTF8(backend),
                Device = Marshal.StringToCoTaskMemUTF8(device),
                Precision = Marshal.StringToCoTaskMemUTF8(precision) };
            try { Check(Native.destseg_open(Utf8(path), ref options, out handle)); }
            finally
            {
                Marshal.FreeCoTaskMem(options.Backend);
                Marshal.FreeCoTaskMem(options.Device);
                Marshal.FreeCoTaskMem(options.Precision);
            }
        }

        public Info Info
        {
            get
            {
                var info = new Info { StructSize = (uint)Marshal.SizeOf<Info>() };
                Check(Native.destseg_get_info(handle, ref info));
                return info;
            }
        }

        // Score one frame; map has room for Info.MapHeight * Info.MapWidth values, or is null.
        public Result Infer(byte[] pixels, int height, int width, Format format, float[] map)
        {
            long channels = format == Format.Grey8 ? 1 : 3;
            if (pixels.LongLength < channels * height * width)
                throw new ArgumentException("pixels: too few for height, width and format");
            GCHandle pinned = GCHandle.Alloc(pixels, GCHandleType.Pinned);
            try
            {
                var frames = new[] { new Frame {
                    Pixels = pinned.AddrOfPinnedObject(), Height = height, Width = width, Format = format } };
                var results = new Result[1];
                var room = (UIntPtr)(uint)(map == null ? 0 : map.Length);
                Check(Native.destseg_infer(handle, frames, 1, results, map, room));
                return results[0];
            }
            finally { pinned.Free(); }
        }

        public void Dispose()
        {
            Native.destseg_close(handle);
            handle = IntPtr.Zero;
        }

        private static byte[] Utf8(string text) => Encoding.UTF8.GetBytes(text + "\0");

        private static void Check(Status status)
        {
            if (status == Status.Ok) return;
            throw new DestsegException(status, Marshal.PtrToStringUTF8(Native.destseg_last_error()));
        }
    }
}
