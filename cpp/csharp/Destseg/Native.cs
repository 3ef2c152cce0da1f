// destseg.h for P/Invoke. tests/cpp/test_package.py compares the layouts with the header.
using System;
using System.Runtime.InteropServices;

namespace Destseg
{
    [StructLayout(LayoutKind.Sequential)]
    internal struct NativeOptions
    {
        public uint StructSize;
        public int Threads;
        public int Parallel;
        public int Tuned;
        public IntPtr Backend;
        public IntPtr Device;
        public IntPtr Precision;
        public IntPtr WorkerCores;
        public int NoSpinning;
        public int Queue;
        public IntPtr Log;
        public IntPtr LogContext;
    }

    [UnmanagedFunctionPointer(CallingConvention.Cdecl)]
    internal delegate void NativeLog(IntPtr context, int level, IntPtr line);

    [StructLayout(LayoutKind.Sequential)]
    internal struct NativeInfo
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
    internal struct NativeFrame
    {
        public uint StructSize;
        public int Format;
        public IntPtr Pixels;
        public long Stride;
        public int Height;
        public int Width;
        public int Maximum;
        public uint Reserved;
        public long Plane;
    }

    [StructLayout(LayoutKind.Sequential)]
    internal struct NativeResult
    {
        public uint StructSize;
        public float Score;
        public float NormalizedScore;
        public int Verdict;
    }

    [StructLayout(LayoutKind.Sequential)]
    internal struct NativeDefect
    {
        public uint StructSize;
        public int X;
        public int Y;
        public int Width;
        public int Height;
        public float Peak;
        public int PeakX;
        public int PeakY;
        public long Area;
        public double CentroidX;
        public double CentroidY;
        public int FirstPoint;
        public int Points;
    }

    [StructLayout(LayoutKind.Sequential)]
    internal struct NativeTimes
    {
        public uint StructSize;
        public int Frames;
        public double WaitedMs;
        public double PreparedMs;
        public double InferredMs;
        public double FinishedMs;
    }

    internal static class Native
    {
        internal const uint AbiVersion = 2;
        private const string Library = "destseg";

        [DllImport(Library, CallingConvention = CallingConvention.Cdecl)]
        internal static extern uint destseg_abi_version();

        [DllImport(Library, CallingConvention = CallingConvention.Cdecl)]
        internal static extern IntPtr destseg_version();

        [DllImport(Library, CallingConvention = CallingConvention.Cdecl)]
        internal static extern IntPtr destseg_backends();

        [DllImport(Library, CallingConvention = CallingConvention.Cdecl)]
        internal static extern IntPtr destseg_last_error();

        [DllImport(Library, CallingConvention = CallingConvention.Cdecl)]
        internal static extern Status destseg_open(
            byte[] path, ref NativeOptions options, out PredictorHandle predictor);

        [DllImport(Library, CallingConvention = CallingConvention.Cdecl)]
        internal static extern Status destseg_reload(PredictorHandle predictor, byte[] path);

        [DllImport(Library, CallingConvention = CallingConvention.Cdecl)]
        internal static extern Status destseg_warm_up(PredictorHandle predictor);

        [DllImport(Library, CallingConvention = CallingConvention.Cdecl)]
        internal static extern Status destseg_get_times(
            PredictorHandle predictor, ref NativeTimes times);

        [DllImport(Library, CallingConvention = CallingConvention.Cdecl)]
        internal static extern void destseg_close(IntPtr predictor);

        [DllImport(Library, CallingConvention = CallingConvention.Cdecl)]
        internal static extern Status destseg_get_info(PredictorHandle predictor, ref NativeInfo info);

        [DllImport(Library, CallingConvention = CallingConvention.Cdecl)]
        internal static extern Status destseg_get_text(
            PredictorHandle predictor, byte[] name, [Out] byte[] buffer, UIntPtr size,
            out UIntPtr needed);

        [DllImport(Library, CallingConvention = CallingConvention.Cdecl)]
        internal static extern Status destseg_infer(
            PredictorHandle predictor, [In] NativeFrame[] frames, int count,
            [In, Out] NativeResult[] results, [Out] float[] maps, UIntPtr mapsFloats);

        [DllImport(Library, CallingConvention = CallingConvention.Cdecl)]
        internal static extern Status destseg_submit(
            PredictorHandle predictor, [In] NativeFrame[] frames, int count, int timeoutMs,
            out ulong ticket);

        [DllImport(Library, CallingConvention = CallingConvention.Cdecl)]
        internal static extern Status destseg_wait(
            PredictorHandle predictor, ulong ticket, int timeoutMs, int count,
            [In, Out] NativeResult[] results, [Out] float[] maps, UIntPtr mapsFloats);

        [DllImport(Library, CallingConvention = CallingConvention.Cdecl)]
        internal static extern Status destseg_crop(
            ref NativeFrame frame, int x, int y, int width, int height, ref NativeFrame part);

        [DllImport(Library, CallingConvention = CallingConvention.Cdecl)]
        internal static extern Status destseg_map_at_frame(
            PredictorHandle predictor, [In] float[] map, int height, int width,
            [Out] float[] target, UIntPtr targetFloats);

        [DllImport(Library, CallingConvention = CallingConvention.Cdecl)]
        internal static extern Status destseg_defects(
            PredictorHandle predictor, [In] float[] map, int height, int width, double threshold,
            [In, Out] NativeDefect[] defects, int defectsRoom, [Out] Point[] points, int pointsRoom,
            out int count, out int pointCount);

        [DllImport(Library, CallingConvention = CallingConvention.Cdecl)]
        internal static extern Status destseg_judge(
            PredictorHandle predictor, float score, ref NativeResult result);
    }

    /// <summary>The number of an open artifact; closing waits for the calls that run.</summary>
    internal sealed class PredictorHandle : SafeHandle
    {
        public PredictorHandle() : base(IntPtr.Zero, true) { }

        // Kept here, so that it is not collected before the handle is closed.
        internal NativeLog Log;

        public override bool IsInvalid { get { return handle == IntPtr.Zero; } }

        protected override bool ReleaseHandle()
        {
            Native.destseg_close(handle);
            return true;
        }
    }
}
