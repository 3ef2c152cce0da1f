// Scores images: Inspect ARTIFACT IMAGE... [--backend NAME] [--threads COUNT]
//
// Prints a line for each image: name, score and OK or NG, and under it a line for each defect. Exits
// with 0 when all are OK, 2 when one is NG, 3 when the model has no threshold, 1 for an error.
using System;
using System.Collections.Generic;
using System.Globalization;
using System.IO;
using System.Text;
using Destseg;

namespace Inspect
{
    internal static class Program
    {
        private static int Main(string[] arguments)
        {
            try { return Run(arguments); }
            catch (Exception error) when (error is DestsegException || error is IOException ||
                                          error is ArgumentException || error is DllNotFoundException ||
                                          error is UnauthorizedAccessException)
            {
                Console.Error.WriteLine("Error: " + error.Message.Replace('\n', ' '));
                return 1;
            }
        }

        private static int Run(string[] arguments)
        {
            Console.OutputEncoding = new UTF8Encoding(false);
            var options = new Options();
            var paths = new List<string>();
            for (int i = 0; i < arguments.Length; ++i)
                if (arguments[i] == "--backend" && i + 1 < arguments.Length) options.Backend = arguments[++i];
                else if (arguments[i] == "--threads" && i + 1 < arguments.Length)
                    options.Threads = Count(arguments[++i]);
                else paths.Add(arguments[i]);
            if (paths.Count < 2)
                throw new ArgumentException(
                    "Usage: Inspect ARTIFACT IMAGE... [--backend NAME] [--threads COUNT]");
            int status = 0;
            using (var predictor = new Predictor(paths[0], options))
                for (int i = 1; i < paths.Count; ++i) status = Math.Max(status, Show(predictor, paths[i]));
            return status;
        }

        /* 0 for OK, 2 for NG, 3 if the model has no threshold. */
        private static int Show(Predictor predictor, string path)
        {
            Prediction prediction = predictor.Infer(Images.Read(path));
            Result result = prediction.Results[0];
            string verdict = result.Verdict == Verdict.Anomalous ? "NG"
                : result.Verdict == Verdict.Normal ? "OK" : "undecided";
            Console.WriteLine(Path.GetFileName(path) + " " + Number(result.Score) + " " + verdict);
            if (result.Verdict != Verdict.Anomalous) return result.Verdict == Verdict.Normal ? 0 : 3;
            foreach (Defect defect in prediction.Defects())
                Console.WriteLine(
                    "defect x " + defect.X + " y " + defect.Y + " width " + defect.Width + " height " +
                    defect.Height + " area " + defect.Area + " peak " + Number(defect.Peak));
            return 2;
        }

        private static int Count(string text)
        {
            int count;
            if (!int.TryParse(text, NumberStyles.None, CultureInfo.InvariantCulture, out count))
                throw new ArgumentException(
                    "--threads " + text + ": expected a whole number. Pass 0 to leave it to the back end.");
            return count;
        }

        // Nine digits tell every float from every other.
        private static string Number(float value)
        {
            return value.ToString("G9", CultureInfo.InvariantCulture);
        }
    }
}
