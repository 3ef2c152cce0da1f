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
        private readonly object reloading = new object();
        private volatile Sizes sizes;
        private volatile bool closed;

        /// <summary>Opens an artifact, with its .json beside it.</summary>
        /// <param name="path">.onnx or .engine</param>
        /// <param name="options">Null for the defaults.</param>
        /// <exception cref="DestsegException">It cannot be opened; the message says why.</exception>
        public Predictor(string path, Options options = null)
        {
            byte[] bytes = Bytes(path, "path");
            uint abi = AbiVersion();
            if (abi != Native.AbiVersion)
                throw new DestsegException(Status.Argument,
                    "destseg: its ABI is " + abi + ", this assembly was compiled for " +
                    Native.AbiVersion + ". Use the two of one release.");
            handle = Open(bytes, options ?? new Options());
            sizes = new Sizes(handle);
        }

        /// <summary>Version of the library, such as "0.1.0".</summary>
        public static string LibraryVersion { get { return Text(Native.destseg_version()); } }

        /// <summary>Names of the back ends that were built in.</summary>
        public static string Backends { get { return Text(Native.destseg_backends()); } }

        /// <summary>Whether frames of any size up to 65536 pixels on each side are taken, and resized with
        /// the training's kernel.</summary>
        public bool AnySize { get { return sizes.Info.AnySize != 0; } }
        /// <summary>Height of the input, in pixels.</summary>
        public int Height { get { return sizes.Info.Height; } }
        /// <summary>Width of the input, in pixels.</summary>
        public int Width { get { return sizes.Info.Width; } }
        /// <summary>Height of the returned maps.</summary>
        public int MapHeight { get { return sizes.Info.MapHeight; } }
        /// <summary>Width of the returned maps.</summary>
        public int MapWidth { get { return sizes.Info.MapWidth; } }
        /// <summary>Frames that are scored in one inference, when there are so many.</summary>
        public int BatchSize { get { return sizes.Info.BatchOpt; } }
        /// <summary>A frame of a greater score is NG; NaN without a threshold.</summary>
        public double ThresholdScore { get { return sizes.Info.ThresholdScore; } }
        /// <summary>A pixel of a greater value is part of a defect; NaN without a threshold.</summary>
        public double ThresholdPixel { get { return sizes.Info.ThresholdPixel; } }

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
            frames = Own(frames);
            var pins = new List<GCHandle>();
            try
            {
                NativeFrame[] views = Array.ConvertAll(frames, frame => frame.View(pins));
                var results = EmptyResults(frames.Length);
                var maps = new float[frames.Length * sizes.MapPixels];
                Run(Native.destseg_infer(
                    Live, views, views.Length, results, maps, (UIntPtr)(ulong)maps.LongLength));
                return new Prediction(this, frames, results, maps);
            }
            finally { foreach (GCHandle pin in pins) pin.Free(); }
        }

        /// <summary>Opens another artifact in this one's place, with the same options. Calls that run, and
        /// tickets, end with the old one. When it fails, the old one stays. Where the maps of the two have
        /// other sizes, let no other call begin while this one runs.</summary>
        public void Reload(string path)
        {
            byte[] bytes = Bytes(path, "path");
            lock (reloading)
            {
                Run(Native.destseg_reload(Live, bytes));
                sizes = new Sizes(Live);
            }
        }

        /// <summary>Runs on grey images, so that the first frame takes no longer than the others.</summary>
        public void WarmUp() { Run(Native.destseg_warm_up(Live)); }

        /// <summary>Where the time of the last call of Infer went.</summary>
        public Times GetTimes()
        {
            var times = new NativeTimes { StructSize = (uint)Marshal.SizeOf(typeof(NativeTimes)) };
            Run(Native.destseg_get_times(Live, ref times));
            return new Times(times);
        }

        /// <summary>Judges a score as Infer does.</summary>
        public Result Judge(float score)
        {
            var result = new NativeResult { StructSize = (uint)Marshal.SizeOf(typeof(NativeResult)) };
            Run(Native.destseg_judge(Live, score, ref result));
            return new Result(result);
        }

        /// <summary>A text of the artifact, such as "category" or "spec"; see destseg_get_text.</summary>
        public string GetText(string name)
        {
            byte[] key = Bytes(name, "name");
            UIntPtr needed;
            Run(Native.destseg_get_text(Live, key, null, UIntPtr.Zero, out needed));
            var buffer = new byte[(int)needed.ToUInt64()];
            Run(Native.destseg_get_text(Live, key, buffer, needed, out needed));
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
                Run(Native.destseg_defects(Live, map, height, width, threshold, found, found.Length,
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
            bool sane = height > 0 && width > 0 && height <= 65536 && width <= 65536;
            var target = new float[sane ? (long)height * width : 0]; // else the call says what is wrong
            Run(Native.destseg_map_at_frame(
                Live, map, height, width, target, (UIntPtr)(ulong)target.LongLength));
            return target;
        }

        /// <summary>Hands frames over and goes on; their pixels are free when it returns.</summary>
        /// <param name="frames">As for Infer.</param>
        /// <param name="timeoutMs">How long to wait while Options.Queue tickets are open; 0 does not wait,
        /// a negative number waits until there is room.</param>
        /// <returns>The ticket to collect the answers with, once; null when there was no room.</returns>
        public Ticket Submit(Frame[] frames, int timeoutMs = -1)
        {
            frames = Own(frames);
            long mapPixels = sizes.MapPixels;
            var pins = new List<GCHandle>();
            try
            {
                NativeFrame[] views = Array.ConvertAll(frames, frame => frame.View(pins));
                ulong number;
                Status status = Native.destseg_submit(Live, views, views.Length, timeoutMs, out number);
                if (status == Status.Timeout) return null;
                Run(status);
                return new Ticket(number, frames, mapPixels);
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
            var maps = new float[frames.Length * ticket.MapPixels];
            Status status = Native.destseg_wait(Live, ticket.Number, timeoutMs, frames.Length, results,
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
            if (map == null) throw new ArgumentNullException("map");
            Sizes known = sizes;
            if (map.LongLength != known.MapPixels)
                throw new ArgumentException(
                    "map: " + map.LongLength + " values, expected " + known.Info.MapHeight + " * " +
                    known.Info.MapWidth + ". Pass a map of the artifact that is open.");
        }

        // The caller may use its array again while a ticket or a prediction needs what is in it.
        private static Frame[] Own(Frame[] frames)
        {
            if (frames == null || Array.IndexOf(frames, null) >= 0)
                throw new ArgumentNullException("frames");
            return (Frame[])frames.Clone();
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

        private static PredictorHandle Open(byte[] path, Options options)
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
                Check(Native.destseg_open(path, ref native, out opened));
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

        // What follows a zero would not be seen by C.
        private static byte[] Bytes(string text, string name)
        {
            if (text == null) throw new ArgumentNullException(name);
            if (text.IndexOf('\0') >= 0)
                throw new ArgumentException(name + ": holds a zero character, at " + text.IndexOf('\0') +
                                            ". Pass the text without it.");
            return Utf8.GetBytes(text + "\0");
        }

        private static IntPtr Allocate(string text)
        {
            if (text == null) return IntPtr.Zero;
            byte[] bytes = Bytes(text, "options");
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

        // The first call of the library: Mono's own words do not say what is missing.
        private static uint AbiVersion()
        {
            try { return Native.destseg_abi_version(); }
            catch (DllNotFoundException error)
            {
                throw new DllNotFoundException(
                    "destseg: its library was not found. Put destseg.dll, on Linux libdestseg.so, beside " +
                    "the program; on Linux, LD_LIBRARY_PATH may name its folder instead.", error);
            }
        }

        private PredictorHandle Live
        {
            get
            {
                if (closed) throw new ObjectDisposedException("Predictor");
                return handle;
            }
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
            if (index < 0 || index >= frames.Length)
                throw new ArgumentOutOfRangeException(
                    "index", index, "expected 0 to " + (frames.Length - 1));
            int size = maps.Length / frames.Length;
            var map = new float[size];
            Array.Copy(maps, (long)index * size, map, 0, size);
            return map;
        }

        /// <summary>The defects of a frame, in its pixels, or in the whole frame's for a part; see Predictor.FindDefects.</summary>
        public Defect[] Defects(int index = 0, double threshold = -1)
        {
            float[] map = Map(index);
            Frame frame = frames[index];
            return predictor.FindDefects(
                map, frame.Height, frame.Width, threshold, frame.X, frame.Y);
        }
    }

    /// <summary>The number of frames that were handed over by Submit.</summary>
    public sealed class Ticket
    {
        internal Ticket(ulong number, Frame[] frames, long mapPixels)
        {
            Number = number;
            Frames = frames;
            MapPixels = mapPixels;
        }

        internal ulong Number { get; }
        internal Frame[] Frames { get; }
        internal long MapPixels { get; } // a reload may change them before the answers are collected
    }

    // What an artifact takes and gives; replaced as a whole, so that other threads see no mixture.
    internal sealed class Sizes
    {
        internal readonly NativeInfo Info = new NativeInfo {
            StructSize = (uint)Marshal.SizeOf(typeof(NativeInfo)) };

        internal Sizes(PredictorHandle handle)
        {
            Predictor.Check(Native.destseg_get_info(handle, ref Info));
        }

        internal long MapPixels { get { return (long)Info.MapHeight * Info.MapWidth; } }
    }
}
