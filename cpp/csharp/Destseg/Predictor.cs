using System;
using System.Collections.Generic;
using System.Runtime.InteropServices;
using System.Text;

namespace Destseg
{
    /// <summary>An open artifact. Threads may share it; Dispose waits for the calls that run.</summary>
    public sealed class Predictor : IDisposable
    {
        private static readonly Encoding Utf8 = new UTF8Encoding(false, true);
        private readonly PredictorHandle handle;
        private NativeInfo info;
        private volatile bool closed;

        /// <summary>Opens an artifact, with its .json beside it.</summary>
        /// <param name="path">.onnx or .engine</param>
        /// <param name="options">Null for the defaults.</param>
        /// <exception cref="DestsegException">It cannot be opened; the message says why.</exception>
        public Predictor(string path, Options options = null)
        {
            if (path == null) throw new ArgumentNullException("path");
            uint abi = Native.destseg_abi_version();
            if (abi != Native.AbiVersion)
                throw new DestsegException(Status.Argument,
                    "destseg: its ABI is " + abi + ", this assembly was compiled for " +
                    Native.AbiVersion + ". Use the two of one release.");
            handle = Open(path, options ?? new Options());
            info = new NativeInfo { StructSize = (uint)Marshal.SizeOf(typeof(NativeInfo)) };
            Check(Native.destseg_get_info(handle, ref info));
        }

        /// <summary>Version of the library, such as "0.1.0".</summary>
        public static string LibraryVersion { get { return Text(Native.destseg_version()); } }

        /// <summary>Names of the back ends that were built in.</summary>
        public static string Backends { get { return Text(Native.destseg_backends()); } }

        /// <summary>Whether frames of any size are taken, and resized with the training's kernel.</summary>
        public bool AnySize { get { return info.AnySize != 0; } }
        /// <summary>Height of the input, in pixels.</summary>
        public int Height { get { return info.Height; } }
        /// <summary>Width of the input, in pixels.</summary>
        public int Width { get { return info.Width; } }
        /// <summary>Height of the returned maps.</summary>
        public int MapHeight { get { return info.MapHeight; } }
        /// <summary>Width of the returned maps.</summary>
        public int MapWidth { get { return info.MapWidth; } }
        /// <summary>Frames that are scored in one inference, when there are so many.</summary>
        public int BatchSize { get { return info.BatchOpt; } }
        /// <summary>A frame of a greater score is NG; NaN without a threshold.</summary>
        public double ThresholdScore { get { return info.ThresholdScore; } }
        /// <summary>A pixel of a greater value is part of a defect; NaN without a threshold.</summary>
        public double ThresholdPixel { get { return info.ThresholdPixel; } }

        /// <summary>Scores one frame.</summary>
        public Prediction Infer(byte[] pixels, int height, int width, PixelFormat format, int stride = 0)
        {
            return Infer(new Frame(pixels, height, width, format, stride));
        }

        /// <summary>Scores one frame in memory outside of .NET; see <see cref="Frame"/>.</summary>
        public Prediction Infer(IntPtr pixels, int height, int width, PixelFormat format, long stride = 0)
        {
            return Infer(new Frame(pixels, height, width, format, stride));
        }

        /// <summary>Scores frames, in batches; each may have its own size and format.</summary>
        /// <exception cref="DestsegException">A frame is refused, or the runtime failed.</exception>
        public Prediction Infer(params Frame[] frames)
        {
            if (frames == null) throw new ArgumentNullException("frames");
            var pins = new List<GCHandle>();
            try
            {
                var views = new NativeFrame[frames.Length];
                for (int i = 0; i < frames.Length; ++i) views[i] = frames[i].View(pins);
                var results = EmptyResults(frames.Length);
                var maps = new float[(long)frames.Length * MapHeight * MapWidth];
                Run(Native.destseg_infer(
                    handle, views, views.Length, results, maps, (UIntPtr)(ulong)maps.LongLength));
                return new Prediction(this, frames, results, maps);
            }
            finally { foreach (GCHandle pin in pins) pin.Free(); }
        }

        /// <summary>Opens another artifact in this one's place, with the same options. Calls that run
        /// end with the old one.</summary>
        public void Reload(string path)
        {
            Run(Native.destseg_reload(handle, Utf8.GetBytes(path + "\0")));
            var renewed = new NativeInfo { StructSize = (uint)Marshal.SizeOf(typeof(NativeInfo)) };
            Run(Native.destseg_get_info(handle, ref renewed));
            info = renewed;
        }

        /// <summary>Runs on grey images, so that the first frame takes no longer than the others.</summary>
        public void WarmUp() { Run(Native.destseg_warm_up(handle)); }

        /// <summary>Where the time of the last call of Infer went.</summary>
        public Times GetTimes()
        {
            var times = new NativeTimes { StructSize = (uint)Marshal.SizeOf(typeof(NativeTimes)) };
            Run(Native.destseg_get_times(handle, ref times));
            return new Times(times);
        }

        /// <summary>Judges a score as Infer does.</summary>
        public Result Judge(float score)
        {
            var result = new NativeResult { StructSize = (uint)Marshal.SizeOf(typeof(NativeResult)) };
            Run(Native.destseg_judge(handle, score, ref result));
            return new Result(result);
        }

        /// <summary>A text of the artifact, such as "category" or "spec"; see destseg_get_text.</summary>
        public string GetText(string name)
        {
            byte[] key = Utf8.GetBytes(name + "\0");
            UIntPtr needed;
            Run(Native.destseg_get_text(handle, key, null, UIntPtr.Zero, out needed));
            var buffer = new byte[(int)needed.ToUInt64()];
            Run(Native.destseg_get_text(handle, key, buffer, needed, out needed));
            return Utf8.GetString(buffer, 0, buffer.Length - 1);
        }

        /// <summary>Finds the defects in a map, in the pixels of a frame.</summary>
        /// <param name="map">MapHeight * MapWidth values.</param>
        /// <param name="height">Of the frame.</param>
        /// <param name="width">Of the frame.</param>
        /// <param name="threshold">0 to 1; a negative one means the artifact's.</param>
        /// <returns>The defects, the greatest peak first.</returns>
        public Defect[] FindDefects(float[] map, int height, int width, double threshold = -1)
        {
            return FindDefects(map, height, width, threshold, 0, 0);
        }

        // Of a part of a frame that begins at (x, y).
        internal Defect[] FindDefects(float[] map, int height, int width, double threshold, int x, int y)
        {
            CheckMap(map);
            var found = new NativeDefect[16];
            var points = new Point[1024];
            for (;;)
            {
                int count, pointCount;
                found[0].StructSize = (uint)Marshal.SizeOf(typeof(NativeDefect));
                Run(Native.destseg_defects(handle, map, height, width, threshold, found, found.Length,
                                             points, points.Length, out count, out pointCount));
                if (count <= found.Length && pointCount <= points.Length)
                {
                    var defects = new Defect[count];
                    for (int i = 0; i < count; ++i) defects[i] = new Defect(found[i], points, x, y);
                    return defects;
                }
                found = new NativeDefect[Math.Max(count, found.Length)];
                points = new Point[Math.Max(pointCount, points.Length)];
            }
        }

        /// <summary>A map at a frame's size: height * width values, row by row.</summary>
        public float[] MapAtFrame(float[] map, int height, int width)
        {
            CheckMap(map);
            var target = new float[Math.Max(0L, (long)height * width)];
            Run(Native.destseg_map_at_frame(
                handle, map, height, width, target, (UIntPtr)(ulong)target.LongLength));
            return target;
        }

        /// <summary>Hands frames over and goes on; their pixels are free when it returns.</summary>
        /// <param name="frames">As for Infer.</param>
        /// <param name="timeoutMs">How long to wait while Options.Queue tickets are open; 0 does not wait,
        /// a negative number waits until there is room.</param>
        /// <returns>The ticket to collect the answers with, once; null when there was no room.</returns>
        public Ticket Submit(Frame[] frames, int timeoutMs = -1)
        {
            if (frames == null) throw new ArgumentNullException("frames");
            var pins = new List<GCHandle>();
            try
            {
                var views = Array.ConvertAll(frames, frame => frame.View(pins));
                ulong number;
                Status status = Native.destseg_submit(handle, views, views.Length, timeoutMs, out number);
                if (status == Status.Timeout) return null;
                Run(status);
                return new Ticket(number, frames);
            }
            finally
            {
                foreach (GCHandle pin in pins) pin.Free();
            }
        }

        /// <summary>Collects the answers of a ticket.</summary>
        /// <param name="ticket">Of Submit; each is collected once.</param>
        /// <param name="timeoutMs">How long to wait for them; a negative number waits until they are
        /// there.</param>
        /// <returns>The answers; null when they are not there yet, and the ticket stays open.</returns>
        public Prediction Wait(Ticket ticket, int timeoutMs = -1)
        {
            if (ticket == null) throw new ArgumentNullException("ticket");
            Frame[] frames = ticket.Frames;
            var results = EmptyResults(frames.Length);
            var maps = new float[(long)frames.Length * MapHeight * MapWidth];
            Status status = Native.destseg_wait(handle, ticket.Number, timeoutMs, frames.Length, results,
                                                maps, (UIntPtr)(ulong)maps.LongLength);
            if (status == Status.Timeout) return null;
            Run(status);
            return new Prediction(this, frames, results, maps);
        }

        private static NativeResult[] EmptyResults(int count)
        {
            var results = new NativeResult[Math.Max(count, 1)];
            results[0].StructSize = (uint)Marshal.SizeOf(typeof(NativeResult));
            return results;
        }

        private void CheckMap(float[] map)
        {
            if (map == null || map.LongLength < (long)MapHeight * MapWidth)
                throw new ArgumentException("map: expected " + MapHeight + " * " + MapWidth + " values.");
        }

        /// <summary>Closes the artifact, after the calls that run; a second call does nothing.</summary>
        public void Dispose()
        {
            if (closed) return;
            closed = true;
            // A SafeHandle alone would be released by the last of the calls, and not before there is a
            // moment without any. The number of a handle is never used twice, so closing it here and
            // once more in ReleaseHandle is right.
            Native.destseg_close(handle.DangerousGetHandle());
            handle.Dispose();
        }

        private static PredictorHandle Open(string path, Options options)
        {
            var native = new NativeOptions {
                StructSize = (uint)Marshal.SizeOf(typeof(NativeOptions)), Threads = options.Threads,
                Parallel = options.Parallel, NoSpinning = options.Spinning ? 0 : 1,
                Queue = options.Queue, Tuned = options.Tuned ? 1 : 0 };
            NativeLog log = Reporter(options.Log);
            if (log != null) native.Log = Marshal.GetFunctionPointerForDelegate(log);
            try
            {
                native.Backend = Allocate(options.Backend);
                native.Device = Allocate(options.Device);
                native.Precision = Allocate(options.Precision);
                native.WorkerCores = Allocate(options.WorkerCores);
                PredictorHandle opened;
                Check(Native.destseg_open(Utf8.GetBytes(path + "\0"), ref native, out opened));
                opened.Log = log;
                return opened;
            }
            finally
            {
                Marshal.FreeHGlobal(native.Backend);
                Marshal.FreeHGlobal(native.Device);
                Marshal.FreeHGlobal(native.Precision);
                Marshal.FreeHGlobal(native.WorkerCores);
                GC.KeepAlive(log);
            }
        }

        // What the host's function throws must not pass through C.
        private static NativeLog Reporter(Action<LogLevel, string> report)
        {
            if (report == null) return null;
            return (context, level, line) => {
                try { report((LogLevel)level, Text(line)); }
                catch (Exception) { }
            };
        }

        private static IntPtr Allocate(string text)
        {
            if (text == null) return IntPtr.Zero;
            byte[] bytes = Utf8.GetBytes(text + "\0");
            IntPtr memory = Marshal.AllocHGlobal(bytes.Length);
            Marshal.Copy(bytes, 0, memory, bytes.Length);
            return memory;
        }

        private static string Text(IntPtr memory)
        {
            int length = 0;
            while (Marshal.ReadByte(memory, length) != 0) ++length;
            var bytes = new byte[length];
            Marshal.Copy(memory, bytes, 0, length);
            return Encoding.UTF8.GetString(bytes);
        }

        // What a call on the handle returned; one that Dispose came before is an error of .NET.
        private void Run(Status status)
        {
            if (status != Status.Ok && closed) throw new ObjectDisposedException("Predictor");
            Check(status);
        }

        internal static void Check(Status status)
        {
            if (status != Status.Ok)
                throw new DestsegException(status, Text(Native.destseg_last_error()));
        }
    }

    /// <summary>The answers for frames, in order.</summary>
    public sealed class Prediction
    {
        private readonly Predictor predictor;
        private readonly Frame[] frames;
        private readonly float[] maps;

        internal Prediction(Predictor predictor, Frame[] frames, NativeResult[] results, float[] maps)
        {
            this.predictor = predictor;
            this.frames = frames;
            this.maps = maps;
            Results = Array.ConvertAll(results, result => new Result(result));
        }

        /// <summary>One for each frame.</summary>
        public Result[] Results { get; }

        /// <summary>The map of a frame: MapHeight * MapWidth values in [0, 1], row by row.</summary>
        public float[] Map(int index = 0)
        {
            int size = maps.Length / frames.Length;
            var map = new float[size];
            Array.Copy(maps, (long)index * size, map, 0, size);
            return map;
        }

        /// <summary>The defects of a frame, in its pixels, or in the whole frame's for a part; see Predictor.FindDefects.</summary>
        public Defect[] Defects(int index = 0, double threshold = -1)
        {
            Frame frame = frames[index];
            return predictor.FindDefects(
                Map(index), frame.Height, frame.Width, threshold, frame.X, frame.Y);
        }
    }

    /// <summary>The number of frames that were handed over by Submit.</summary>
    public sealed class Ticket
    {
        internal Ticket(ulong number, Frame[] frames)
        {
            Number = number;
            Frames = frames;
        }

        internal ulong Number { get; }
        internal Frame[] Frames { get; }
    }
}
