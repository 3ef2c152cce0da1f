using System;
using System.Runtime.InteropServices;

namespace Destseg
{
    /// <summary>Why a call failed; see destseg.h.</summary>
    public enum Status : int
    {
        /// <summary>It did not fail.</summary>
        Ok,
        /// <summary>The .json is missing, damaged, or of another file.</summary>
        Spec,
        /// <summary>A frame of a size or format that the artifact refuses.</summary>
        Shape,
        /// <summary>A runtime, device or artifact is missing or failed.</summary>
        Backend,
        /// <summary>An argument is not right.</summary>
        Argument,
        /// <summary>There is not enough memory.</summary>
        Memory,
        /// <summary>A bug in the library; please report it with its text.</summary>
        Internal,
        /// <summary>The time that was given has passed; Submit and Wait tell it without an
        /// exception.</summary>
        Timeout
    }

    /// <summary>What pixels are, named as GenICam names them.</summary>
    public enum PixelFormat : int
    {
        /// <summary>8 bit grey.</summary>
        Mono8 = 1,
        /// <summary>Red, green, blue.</summary>
        Rgb8 = 2,
        /// <summary>Blue, green, red: a .NET Bitmap of Format24bppRgb.</summary>
        Bgr8 = 3,
        /// <summary>RGB and a fourth byte that is not looked at.</summary>
        Rgba8 = 4,
        /// <summary>BGR and a fourth byte: a .NET Bitmap of Format32bppArgb.</summary>
        Bgra8 = 5,
        /// <summary>16 bit per pixel, values to 1023.</summary>
        Mono10 = 6,
        /// <summary>16 bit per pixel, values to 4095.</summary>
        Mono12 = 7,
        /// <summary>16 bit per pixel, values to 65535 or a declared maximum.</summary>
        Mono16 = 8,
        /// <summary>A plane of red, then green, then blue.</summary>
        Rgb8Planar = 9,
        /// <summary>The first row begins red, green.</summary>
        BayerRG8 = 10,
        /// <summary>The first row begins green, blue.</summary>
        BayerGB8 = 11,
        /// <summary>The first row begins green, red.</summary>
        BayerGR8 = 12,
        /// <summary>The first row begins blue, green.</summary>
        BayerBG8 = 13,
        /// <summary>Y U Y V.</summary>
        Yuv422 = 14,
        /// <summary>U Y V Y.</summary>
        Yuv422Uyvy = 15
    }

    /// <summary>How much a reported line matters.</summary>
    public enum LogLevel : int
    {
        /// <summary>What was done.</summary>
        Info = 1,
        /// <summary>Answers may be slower, or less accurate, than they could be.</summary>
        Warning = 2,
        /// <summary>A failure.</summary>
        Error = 3
    }

    /// <summary>Show Normal as OK and Anomalous as NG.</summary>
    public enum Verdict : int
    {
        /// <summary>No threshold is set yet.</summary>
        Undecided = -1,
        /// <summary>OK.</summary>
        Normal = 0,
        /// <summary>NG.</summary>
        Anomalous = 1
    }

    /// <summary>A place in a frame; (0, 0) is the top left pixel.</summary>
    [StructLayout(LayoutKind.Sequential)]
    public struct Point
    {
        /// <summary>To the right.</summary>
        public int X;
        /// <summary>Down.</summary>
        public int Y;
    }

    /// <summary>The answer for a frame.</summary>
    public struct Result
    {
        internal Result(NativeResult native)
        {
            Score = native.Score;
            NormalizedScore = native.NormalizedScore;
            Verdict = (Verdict)native.Verdict;
        }

        /// <summary>Raw, in [0, 1].</summary>
        public float Score { get; }
        /// <summary>In [0, 1], the threshold at 0.5; NaN without a threshold.</summary>
        public float NormalizedScore { get; }
        /// <summary>NG when the score is greater than the threshold.</summary>
        public Verdict Verdict { get; }
    }

    /// <summary>Milliseconds that a call of Infer took.</summary>
    public struct Times
    {
        internal Times(NativeTimes native)
        {
            Frames = native.Frames;
            Waited = native.WaitedMs;
            Prepared = native.PreparedMs;
            Inferred = native.InferredMs;
            Finished = native.FinishedMs;
        }

        /// <summary>How many frames it scored.</summary>
        public int Frames { get; }
        /// <summary>Waiting for other calls.</summary>
        public double Waited { get; }
        /// <summary>Conversion and resize of the frames.</summary>
        public double Prepared { get; }
        /// <summary>In the back end.</summary>
        public double Inferred { get; }
        /// <summary>Checks, copies and verdicts.</summary>
        public double Finished { get; }
    }

    /// <summary>A region of the map above the pixel threshold, in the frame's pixels.</summary>
    public sealed class Defect
    {
        internal Defect(NativeDefect native, Point[] points, int x, int y)
        {
            X = native.X + x;
            Y = native.Y + y;
            Width = native.Width;
            Height = native.Height;
            Area = native.Area;
            Peak = native.Peak;
            PeakAt = new Point { X = native.PeakX + x, Y = native.PeakY + y };
            CentroidX = native.CentroidX + x;
            CentroidY = native.CentroidY + y;
            Contour = new Point[native.Points];
            for (int i = 0; i < native.Points; ++i)
            {
                Point point = points[native.FirstPoint + i];
                Contour[i] = new Point { X = point.X + x, Y = point.Y + y };
            }
        }

        /// <summary>Left column of the smallest box around it.</summary>
        public int X { get; }
        /// <summary>Top row of the box.</summary>
        public int Y { get; }
        /// <summary>Columns of the box.</summary>
        public int Width { get; }
        /// <summary>Rows of the box.</summary>
        public int Height { get; }
        /// <summary>Its pixels.</summary>
        public long Area { get; }
        /// <summary>The greatest value of the map in it.</summary>
        public float Peak { get; }
        /// <summary>Where the greatest value is.</summary>
        public Point PeakAt { get; }
        /// <summary>Mean of its pixels' columns.</summary>
        public double CentroidX { get; }
        /// <summary>Mean of its pixels' rows.</summary>
        public double CentroidY { get; }
        /// <summary>Each pixel of the outer border, counterclockwise.</summary>
        public Point[] Contour { get; }
    }

    /// <summary>A call that failed: what was wrong, what was expected and what to do.</summary>
    public sealed class DestsegException : Exception
    {
        internal DestsegException(Status status, string message) : base(message) { Status = status; }

        /// <summary>What kind of failure it was.</summary>
        public Status Status { get; }
    }

    /// <summary>How an artifact is opened.</summary>
    public sealed class Options
    {
        /// <summary>"onnxruntime", "openvino" or "tensorrt"; null takes the first that is found.</summary>
        public string Backend { get; set; }
        /// <summary>"cpu", "cuda" or "cuda:0"; null means "cpu" for .onnx.</summary>
        public string Device { get; set; }
        /// <summary>Of OpenVINO only: "fp32" or "bf16".</summary>
        public string Precision { get; set; }
        /// <summary>Threads within one inference on a CPU; 0 leaves it to the back end.</summary>
        public int Threads { get; set; }
        /// <summary>Calls that run at once, 1 to 64; 0 means 2.</summary>
        public int Parallel { get; set; }
        /// <summary>Of ONNX Runtime on a CPU only: the cores, counted from 0, that the threads beside the
        /// calling one are pinned to, one each, such as "2,3,5".</summary>
        public string WorkerCores { get; set; }
        /// <summary>Of ONNX Runtime on a CPU only: let waiting threads look for work for a while before
        /// they sleep.</summary>
        public bool Spinning { get; set; } = true;
        /// <summary>Tickets of Submit that may be open, 1 to 1024; 0 means 16.</summary>
        public int Queue { get; set; }
        /// <summary>Back end, precision, threads, spinning and streams are what destseg tune found
        /// fastest on this machine and wrote beside the artifact.</summary>
        public bool Tuned { get; set; }
        /// <summary>Receives what is reported, in any thread; it must return soon and not use the
        /// predictor. What it throws is dropped.</summary>
        public Action<LogLevel, string> Log { get; set; }
    }
}
