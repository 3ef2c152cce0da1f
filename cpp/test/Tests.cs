// Frames, batches, pointers, defects and closing, for tests/cpp/test_csharp.py: Tests ARTIFACT
using System;
using System.Globalization;
using System.Runtime.InteropServices;
using System.Threading;
using Destseg;

internal static class Tests
{
    private static string Words(Prediction found)
    {
        return string.Join(" ", Array.ConvertAll(found.Results, r =>
            BitConverter.ToInt32(BitConverter.GetBytes(r.Score), 0).ToString()));
    }

    private static void Refuse(string what, Action call)
    {
        try { call(); Console.WriteLine(what + " was not refused"); }
        catch (DestsegException error) { Console.WriteLine(what + " " + error.Status + " " + error.Message); }
        catch (ArgumentException error) { Console.WriteLine(what + " " + error.Message.Split('\n')[0]); }
        catch (ObjectDisposedException) { Console.WriteLine(what + " disposed"); }
    }

    // Tickets, parts of frames, maps at the frame's size, and the log.
    private static void Around(Predictor predictor, byte[] pixels, Prediction one, Options options)
    {
        var frame = new Frame(pixels, 64, 64, PixelFormat.Rgb8);
        Ticket ticket = predictor.Submit(new[] { frame }, 0);
        var room = new System.Collections.Generic.List<Ticket>();
        for (Ticket more = ticket; more != null; more = predictor.Submit(new[] { frame }, 0)) room.Add(more);
        Console.WriteLine(room.Count + " tickets");
        Prediction found = null;
        while (found == null) found = predictor.Wait(ticket, 1);
        Console.WriteLine(Words(found) == Words(one) && found.Map()[77] == one.Map()[77]);
        for (int i = 1; i < room.Count; ++i) predictor.Wait(room[i]);
        Refuse("again", () => predictor.Wait(ticket));
        Frame part = frame.Crop(20, 10, 30, 40);
        var copy = new byte[30 * 40 * 3];
        for (int y = 0; y < 40; ++y) Array.Copy(pixels, ((10 + y) * 64 + 20) * 3, copy, y * 90, 90);
        Prediction whole = predictor.Infer(part), alone = predictor.Infer(copy, 40, 30, PixelFormat.Rgb8);
        Defect here = whole.Defects(0, 0.3)[0], there = alone.Defects(0, 0.3)[0];
        Console.WriteLine((Words(whole) == Words(alone)) + " " + (here.X - there.X) + " " +
            (here.Y - there.Y) + " " + (here.Contour[0].X - there.Contour[0].X) + " " +
            (here.CentroidY - there.CentroidY).ToString("0.0", CultureInfo.InvariantCulture));
        Refuse("outside", () => frame.Crop(40, 0, 30, 5));
        float[] large = predictor.MapAtFrame(one.Map(), 128, 64);
        Console.WriteLine(large.Length + " " + (large[0] == one.Map()[0]));
        string lines = "";
        options.Log = (level, line) => { lines += level + " " + line; throw new Exception("of the host"); };
        options.Spinning = false;
        using (new Predictor(Path, options)) { }
        Console.WriteLine(lines);
    }

    private static string Path;

    private static void Main(string[] arguments)
    {
        Console.OutputEncoding = new System.Text.UTF8Encoding(false);
        var options = new Options { Threads = 1, Backend = "onnxruntime" };
        var pixels = new byte[64 * 64 * 3];
        for (int i = 0; i < pixels.Length; ++i) pixels[i] = (byte)(i * 7919 >> 3);
        var mono = new ushort[64 * 64];
        for (int i = 0; i < mono.Length; ++i) mono[i] = (ushort)(i % 4096);
        Path = arguments[0];
        Predictor predictor = new Predictor(Path, options);
        Console.WriteLine(predictor.Height + " " + predictor.MapWidth + " " + predictor.GetText("category"));
        Prediction one = predictor.Infer(pixels, 64, 64, PixelFormat.Rgb8);
        Console.WriteLine(Words(one));
        Console.WriteLine(Words(predictor.Infer(
            new Frame(pixels, 64, 64, PixelFormat.Bgr8),
            new Frame(mono, 64, 64, PixelFormat.Mono12),
            new Frame(pixels, 60, 50, PixelFormat.Rgb8, 192))));
        IntPtr memory = Marshal.AllocHGlobal(pixels.Length);
        Marshal.Copy(pixels, 0, memory, pixels.Length);
        Console.WriteLine(Words(predictor.Infer(memory + 63 * 192, 64, 64, PixelFormat.Rgb8, -192)));
        Marshal.FreeHGlobal(memory);
        double sum = 0;
        foreach (float value in one.Map()) sum += value;
        Console.WriteLine(sum.ToString("R", CultureInfo.InvariantCulture));
        Defect[] defects = one.Defects(0, 0.4);
        Console.Write(defects.Length);
        foreach (Defect d in defects)
            Console.Write(" " + d.X + "," + d.Y + "," + d.Width + "," + d.Height + "," + d.Area + "," +
                d.PeakAt.X + "," + d.PeakAt.Y + "," + d.Contour.Length + "," +
                d.CentroidX.ToString("R", CultureInfo.InvariantCulture));
        Console.WriteLine();
        Refuse("short", () => predictor.Infer(new byte[9], 64, 64, PixelFormat.Rgb8));
        Refuse("none", () => predictor.Infer(new Frame[0]));
        Refuse("missing", () => new Predictor("検査.onnx"));
        Around(predictor, pixels, one, options);
        bool failed = false;
        var threads = new Thread[4];
        for (int i = 0; i < threads.Length; ++i)
        {
            threads[i] = new Thread(() => {
                try { for (;;) predictor.Infer(pixels, 64, 64, PixelFormat.Rgb8); }
                catch (ObjectDisposedException) { }
                catch (Exception error) { Console.WriteLine(error); failed = true; }
            });
            threads[i].Start();
        }
        Thread.Sleep(100);
        predictor.Dispose();
        foreach (Thread thread in threads) thread.Join();
        predictor.Dispose();
        Refuse("closed", () => predictor.Judge(0.5f));
        Console.WriteLine(failed ? "a thread failed" : "closed while running");
    }
}
