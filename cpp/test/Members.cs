// What the members of the assembly do, for tests/cpp/test_csharp_members.py: Members CASE ARGUMENT...
using System;
using System.Collections.Generic;
using System.Diagnostics;
using System.Globalization;
using System.IO;
using System.Runtime.CompilerServices;
using System.Threading;
using Destseg;

internal static class Members
{
    private static void Print(params object[] values)
    {
        Console.WriteLine(string.Join(" ", Array.ConvertAll(values, value =>
            string.Format(CultureInfo.InvariantCulture, value is double ? "{0:R}" : "{0}", value))));
    }

    // The kind of error and what it says, in one line.
    private static void Refuse(string what, Action call)
    {
        try { call(); Print(what, "was not refused"); }
        catch (DestsegException error) { Print(what, error.Status, error.Message); }
        catch (Exception error) { Print(what, error.GetType().Name, error.Message.Replace('\n', ' ')); }
    }

    private static int Bits(float value) { return BitConverter.ToInt32(BitConverter.GetBytes(value), 0); }

    private static byte[] Pixels(int count, int seed = 0)
    {
        var pixels = new byte[count];
        for (int i = 0; i < count; ++i) pixels[i] = (byte)((i + seed) * 7919 >> 3);
        return pixels;
    }

    private static Frame Rgb(int height, int width, int seed = 0)
    {
        return new Frame(Pixels(height * width * 3, seed), height, width, PixelFormat.Rgb8);
    }

    // The map of a packing model holds every bit of its input.
    private static bool IsPacked(float[] map, byte[] rgb)
    {
        for (int i = 0; i < map.Length; ++i)
            if (map[i] != (rgb[3 * i] + 256 * rgb[3 * i + 1] + 65536 * rgb[3 * i + 2]) / 16777216f)
                return false;
        return map.Length * 3 == rgb.Length;
    }

    private static void Facts(string path)
    {
        Print(Predictor.LibraryVersion, Predictor.Backends);
        using (var opened = new Predictor(path)) Sizes(opened);
    }

    private static void Sizes(Predictor opened)
    {
        Print(opened.AnySize, opened.Height, opened.Width, opened.MapHeight, opened.MapWidth,
              opened.BatchSize, opened.ThresholdScore, opened.ThresholdPixel);
    }

    // Of a frame whose first pixels are its greatest: score, verdict, defect; and a score of the host's.
    private static void Answers(string path)
    {
        var pixels = new byte[8 * 20];
        for (int i = 0; i < 6; ++i) pixels[i] = 200;
        var frame = new Frame(pixels, 8, 6, PixelFormat.Mono8, 20);
        Print(frame.Stride, frame.Format, frame.Height, frame.Width, frame.X, frame.Y);
        using (var predictor = new Predictor(path))
        {
            Prediction found = predictor.Infer(frame);
            foreach (Result one in new[] { found.Results[0], predictor.Judge(0.125f) })
                Print(Bits(one.Score), Bits(one.NormalizedScore), one.Verdict);
            Defect defect = found.Defects()[0];
            Print(Bits(defect.Peak), defect.Width, defect.Height, defect.CentroidY);
        }
    }

    private static void Reload(string path, string other, string missing, string kind)
    {
        using (var predictor = new Predictor(path, new Options { Backend = "onnxruntime" }))
        {
            Ticket ticket = predictor.Submit(new[] { Rgb(40, 24), Rgb(40, 24, 5) });
            Prediction before = predictor.Infer(Rgb(40, 24), Rgb(40, 24, 5));
            Print(before.Results[0].Score == before.Map(0)[0], Bits(before.Results[1].Score));
            Refuse("missing", () => predictor.Reload(missing));
            Refuse("kind", () => predictor.Reload(kind));
            Sizes(predictor);
            predictor.Reload(other);
            Sizes(predictor);
            Prediction after = predictor.Infer(Rgb(8, 6, 9));
            Print(Bits(after.Results[0].Score), after.Map().Length);
            Prediction late = predictor.Wait(ticket);
            Print(Bits(late.Results[1].Score), IsPacked(late.Map(1), Pixels(40 * 24 * 3, 5)));
            Refuse("old map", () => before.Defects(0, 0.1));
            predictor.Reload(path);
            Print(before.Defects(0, 0.1).Length > 0, Bits(predictor.Infer(Rgb(40, 24, 5)).Results[0].Score));
        }
    }

    private static void Times(string slow)
    {
        using (var predictor = new Predictor(slow, new Options { Parallel = 1 }))
        {
            Times none = predictor.GetTimes();
            Print(none.Frames, none.Waited + none.Prepared + none.Inferred + none.Finished);
            predictor.WarmUp();
            predictor.Infer(Rgb(800, 600), Rgb(8, 6));
            Times times = predictor.GetTimes();
            Print(times.Frames, times.Waited, times.Prepared, times.Inferred, times.Finished);
            Print(Waited(predictor));
        }
        using (var predictor = new Predictor(slow, new Options { Parallel = 2 })) Print(Waited(predictor));
    }

    // Of the later one of two calls.
    private static double Waited(Predictor predictor)
    {
        var other = new Thread(() => predictor.Infer(Rgb(8, 6)));
        other.Start();
        predictor.Infer(Rgb(8, 6));
        other.Join();
        return predictor.GetTimes().Waited;
    }

    private static void Queue(string slow)
    {
        using (var predictor = new Predictor(slow, new Options { Queue = 1, Parallel = 1 }))
        {
            var frames = new[] { Rgb(8, 6) };
            Ticket ticket = predictor.Submit(frames, 0);
            Stopwatch watch = Stopwatch.StartNew();
            Print(ticket != null, predictor.Submit(frames, 60) == null, watch.ElapsedMilliseconds);
            Print(predictor.Wait(ticket, 0) == null, predictor.Wait(ticket) != null);
            Print(predictor.Submit(frames, 0) != null);
        }
        Refuse("queue", () => new Predictor(slow, new Options { Queue = 1025 }));
    }

    // A host that fills one array again and again.
    private static void OneArray(string path)
    {
        using (var predictor = new Predictor(path))
        {
            Frame whole = Rgb(80, 48);
            var frames = new[] { whole.Crop(20, 10, 24, 40) };
            Defect expected = predictor.Infer(whole.Crop(20, 10, 24, 40)).Defects(0, 0.1)[0];
            Ticket ticket = predictor.Submit(frames);
            Prediction found = predictor.Infer(frames);
            frames[0] = whole.Crop(0, 0, 48, 80);
            foreach (Prediction one in new[] { found, predictor.Wait(ticket) })
            {
                Defect defect = one.Defects(0, 0.1)[0];
                Print(defect.X - expected.X, defect.Y - expected.Y, defect.Area - expected.Area);
            }
        }
    }

    // Members OPTIONS ARTIFACT NAME=VALUE...: what runs here, and the map's first values.
    private static void Open(string path, params string[] given)
    {
        var options = new Options();
        foreach (string entry in given)
        {
            string[] parts = entry.Split('=');
            var property = typeof(Options).GetProperty(parts[0]);
            property.SetValue(options, Convert.ChangeType(parts[1], property.PropertyType), null);
        }
        var before = new List<string>(Tasks());
        Refuse("opening", () => {
            using (var predictor = new Predictor(path, options))
            {
                float[] map = predictor.Infer(Rgb(predictor.Height, predictor.Width)).Map();
                Print(predictor.GetText("backend"), predictor.GetText("device"));
                Print(Array.ConvertAll(map, value => (object)Bits(value)));
                Print(string.Join(" ", Cores(before)));
            }
        });
    }

    private static string[] Tasks()
    {
        return Directory.Exists("/proc/self/task") ? Directory.GetDirectories("/proc/self/task") : new string[0];
    }

    // Where the threads that are not among those may run.
    private static IEnumerable<string> Cores(List<string> before)
    {
        foreach (string task in Tasks())
            if (!before.Contains(task))
                foreach (string line in File.ReadAllLines(task + "/status"))
                    if (line.StartsWith("Cpus_allowed_list:")) yield return line.Split('\t')[1];
    }

    private static void Disposed(string path)
    {
        var predictor = new Predictor(path, new Options { Backend = "onnxruntime" });
        var frames = new[] { Rgb(40, 24) };
        Prediction found = predictor.Infer(frames);
        Ticket ticket = predictor.Submit(frames);
        predictor.Dispose();
        predictor.Dispose();
        Refuse("Infer", () => predictor.Infer(frames));
        Refuse("Submit", () => predictor.Submit(frames));
        Refuse("Wait", () => predictor.Wait(ticket));
        Refuse("Reload", () => predictor.Reload(path));
        Refuse("WarmUp", () => predictor.WarmUp());
        Refuse("GetTimes", () => predictor.GetTimes());
        Refuse("Judge", () => predictor.Judge(0.5f));
        Refuse("GetText", () => predictor.GetText("spec"));
        Refuse("FindDefects", () => predictor.FindDefects(found.Map(), 40, 24));
        Refuse("MapAtFrame", () => predictor.MapAtFrame(found.Map(), 40, 24));
        Refuse("Defects", () => found.Defects());
        Print(IsPacked(found.Map(), Pixels(40 * 24 * 3)));
    }

    private static void Wrong(string path)
    {
        Refuse("path", () => new Predictor(null));
        Refuse("zero", () => new Predictor(path + "\0.onnx"));
        Refuse("option", () => new Predictor(path, new Options { Device = "cpu\0" }));
        Refuse("pixels", () => new Frame((byte[])null, 8, 6, PixelFormat.Rgb8));
        Refuse("words", () => new Frame((ushort[])null, 8, 6, PixelFormat.Mono16));
        Refuse("part", () => new Frame(IntPtr.Zero, 8, 6, PixelFormat.Rgb8).Crop(2, 2, 4, 4));
        Refuse("huge", () => new Frame(
            new byte[3], int.MaxValue, int.MaxValue, PixelFormat.Rgb8Planar, int.MaxValue));
        Refuse("below", () => new Frame(new byte[144], 8, 6, PixelFormat.Rgb8, -18));
        using (var predictor = new Predictor(path))
        {
            Refuse("infer", () => predictor.Infer((Frame[])null));
            Refuse("element", () => predictor.Infer(Rgb(8, 6), null));
            Refuse("submit", () => predictor.Submit(null));
            Refuse("submitted", () => predictor.Submit(new Frame[] { null }));
            Refuse("wait", () => predictor.Wait(null));
            Refuse("reload", () => predictor.Reload(null));
            Refuse("text", () => predictor.GetText(null));
            Refuse("map", () => predictor.FindDefects(null, 8, 6));
            Refuse("size", () => predictor.MapAtFrame(null, 8, 6));
            Prediction found = predictor.Infer(Rgb(8, 6));
            Refuse("side", () => predictor.MapAtFrame(found.Map(), int.MaxValue, int.MaxValue));
            Refuse("index", () => found.Map(1));
            Refuse("defects", () => found.Defects(-1));
            Refuse("pointer", () => predictor.Infer(IntPtr.Zero, 8, 6, PixelFormat.Rgb8));
            Refuse("stride", () => predictor.Infer(new byte[400], 8, 6, PixelFormat.Rgb8, 17));
            Refuse("maximum", () => predictor.Infer(
                new Frame(new ushort[48], 8, 6, PixelFormat.Mono12) { Maximum = 65536 }));
            Refuse("unset", () => predictor.GetText("no such entry"));
        }
    }

    private static void Maximum(string path)
    {
        var values = new ushort[40 * 24];
        for (int i = 0; i < values.Length; ++i) values[i] = (ushort)(i % 300);
        using (var predictor = new Predictor(path))
            Print(Bits(predictor.Infer(
                new Frame(values, 40, 24, PixelFormat.Mono16) { Maximum = 299 }).Map()[155]));
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static void Forget(string path)
    {
        var options = new Options { Backend = "onnxruntime", Threads = 2, Log = (level, line) => { } };
        new Predictor(path, options).Infer(Rgb(40, 24));
    }

    // Each predictor has a thread of ONNX Runtime, which ends when it is closed.
    private static void Finalised(string path)
    {
        int before = Tasks().Length;
        for (int i = 0; i < 10; ++i)
        {
            var opener = new Thread(() => Forget(path)); // what is on this stack is not collected
            opener.Start();
            opener.Join();
        }
        int opened = Tasks().Length - before;
        for (int i = 0; i < 200 && Tasks().Length - before > 2; ++i)
        {
            GC.Collect();
            GC.WaitForPendingFinalizers();
            Thread.Sleep(20);
        }
        Print(opened, Tasks().Length - before);
    }

    // Small arrays, which a collection moves but for those that Mono sees on a stack: so there are many.
    private static void Moved(string path)
    {
        bool stop = false;
        var collector = new Thread(() => {
            for (int i = 0; !Volatile.Read(ref stop); ++i)
            {
                var garbage = new byte[100][];
                for (int k = 0; k < garbage.Length; ++k) garbage[k] = new byte[k + i % 50];
                GC.Collect(0);
            }
        });
        collector.Start();
        int right = 0;
        using (var predictor = new Predictor(path, new Options { Threads = 1 }))
            for (int i = 0; i < 20; ++i)
            {
                Frame[] frames = Many(i);
                if (ArePacked(predictor.Infer(frames), i)) ++right;
                if (ArePacked(predictor.Wait(predictor.Submit(Many(i))), i)) ++right;
            }
        Volatile.Write(ref stop, true);
        collector.Join();
        Print(right);
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static Frame[] Many(int seed)
    {
        var frames = new Frame[60];
        for (int i = 0; i < frames.Length; ++i) frames[i] = Rgb(40, 24, seed + i);
        return frames;
    }

    private static bool ArePacked(Prediction found, int seed)
    {
        for (int i = 0; i < found.Results.Length; ++i)
            if (!IsPacked(found.Map(i), Pixels(40 * 24 * 3, seed + i))) return false;
        return true;
    }

    // Two artifacts in two threads; each has its own answers and its own errors.
    private static void Two(string path, string other)
    {
        int first = 0, second = 0;
        var threads = new[] { new Thread(() => first = Alone(path, 40, 24)),
                              new Thread(() => second = Alone(other, 8, 6)) };
        foreach (Thread thread in threads) thread.Start();
        foreach (Thread thread in threads) thread.Join();
        Print(first, second);
    }

    // How many of 100 turns were right.
    private static int Alone(string path, int height, int width)
    {
        int right = 0;
        using (var predictor = new Predictor(path, new Options { Threads = 1 }))
            for (int i = 0; i < 100; ++i)
            {
                byte[] pixels = Pixels(height * width * 3, i);
                Prediction found = predictor.Infer(pixels, height, width, PixelFormat.Rgb8);
                string text = height + " of " + i;
                try { predictor.GetText(text); }
                catch (DestsegException error)
                {
                    if (error.Message.Contains(text) && IsPacked(found.Map(), pixels)) ++right;
                }
            }
        return right;
    }

    private static void Main(string[] given)
    {
        Console.OutputEncoding = new System.Text.UTF8Encoding(false);
        string path = given[1];
        switch (given[0])
        {
            case "facts": Facts(path); break;
            case "answers": Answers(path); break;
            case "reload": Reload(path, given[2], given[3], given[4]); break;
            case "times": Times(path); break;
            case "queue": Queue(path); break;
            case "one-array": OneArray(path); break;
            case "open": Open(path, new List<string>(given).GetRange(2, given.Length - 2).ToArray()); break;
            case "disposed": Disposed(path); break;
            case "wrong": Wrong(path); break;
            case "maximum": Maximum(path); break;
            case "finalised": Finalised(path); break;
            case "moved": Moved(path); break;
            case "two": Two(path, given[2]); break;
            default: throw new ArgumentException(given[0]);
        }
    }
}
